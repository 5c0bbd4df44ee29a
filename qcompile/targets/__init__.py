"""One file per kernel library: is it here, what it takes, how it packs, what it calls."""
