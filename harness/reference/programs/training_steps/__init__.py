"""The program `training_steps`: the time and the error of a training step in three formulations."""
