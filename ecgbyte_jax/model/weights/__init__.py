"""Files of weights, read tensor by tensor."""
