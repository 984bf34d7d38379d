"""From a model that goes on to one that answers: fine-tuning, rankings, rewards, and optimising against them."""
