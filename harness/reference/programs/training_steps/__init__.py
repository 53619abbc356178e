"""The program `training_steps`: one step of training, three ways, with its error beside its time."""
