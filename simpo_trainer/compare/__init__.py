"""`simpo compare`: what several runs came to, side by side, from the files that they left."""
