"""What a finished run shows of itself: manifest, curves, model card, and the push to the Hub."""
