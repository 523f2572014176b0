"""The quickstart: a toy world of short instructions, small enough to train in a minute on two CPU cores."""
