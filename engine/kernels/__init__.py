"""The arithmetic between the matrix products, one mechanism a file."""
