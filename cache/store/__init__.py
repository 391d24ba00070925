"""Where recordings are kept: one protocol (base.py), one file per kind of store."""
