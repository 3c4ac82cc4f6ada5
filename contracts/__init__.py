"""The data every part shares, and no behaviour beyond reading, writing and checking it."""
