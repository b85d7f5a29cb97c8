"""Loss terms as pure functions that work in 2D and 3D.

Shapes: B images, K classes, F features, *S spatial axes (two or three). `log_p` is a log-softmax
over K in float32, computed once per stream and shared by all terms. A `mask` is boolean and True
where a pixel counts; the mean over an empty mask is 0.
"""
