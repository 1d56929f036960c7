"""What scorers share: finding the answer in a text, and saying whether two answers are the same."""
