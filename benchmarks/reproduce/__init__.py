"""The claims of the paper, and ours, put to the test: ``make reproduce``."""
