"""Loss terms as pure functions over any number of spatial axes.

Letters: B batch, K classes, F features, *S two or three spatial axes. `log_p` is a log-softmax over K in float32, computed once
per stream and shared by all its terms. `mask` is boolean, True where a pixel counts; a mean over nothing is 0.
"""
