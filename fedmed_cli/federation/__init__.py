"""What sites and the coordinator do in a round."""
