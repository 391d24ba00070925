"""Task families: each is a function (random, level 1-5) -> Item(question, answer, working)."""
