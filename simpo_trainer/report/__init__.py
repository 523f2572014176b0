"""`simpo report`: one page about a run, made of the files in its folder alone."""
