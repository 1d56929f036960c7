"""Studies: algorithms compared over tasks and seeds, with statistics as a paper would give them."""
