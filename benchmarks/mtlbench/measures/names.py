"""Names under which a run keeps what the probe of its gradients saw; without torch, which a report does not need."""

OF_GRADIENTS = ("min_cosine", "mean_cosine", "norm_ratio", "magnitude_similarity", "condition", "min_cosine_minibatch")
OF_FEATURES = (
    "disentanglement", "disentanglement_cosine", "disentanglement_entropy", "disentanglement_times_input",
)  # fmt: skip
"""What is measured at every look; the first of the features is the overlap."""
