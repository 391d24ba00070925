"""The engine in a process of its own: its messages, the child's side and the gateway's side."""
