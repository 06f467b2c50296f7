"""Training loops that several experiments share: each module trains one kind of model."""
