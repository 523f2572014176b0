"""What a run leaves of itself in its folder, and reading it back."""
