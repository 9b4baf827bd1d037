"""What is shown while a run goes on: the terminal and Weights & Biases."""
