"""On-policy data: answers of the model itself, their scores, and the pairs that they make."""
