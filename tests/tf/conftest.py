"""TensorFlow writes about itself on stderr while it is imported; it is asked not to."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
