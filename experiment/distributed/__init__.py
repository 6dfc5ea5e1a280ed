"""Several processes that train, evaluate and draw as one: who they are, what each computes, what they share."""
