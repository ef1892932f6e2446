"""The attack trial's parts: each `trial` tries what it is named after, and gives a line for each kind of attack."""
