"""Models on images: plan, package, network, inference, training and evaluation; values in, values out."""
