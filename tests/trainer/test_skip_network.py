import numpy as np
import tensorflow as tf

from trainer.skip_network import SkipNetwork


def test_it_adds_a_linear_function_that_begins_at_zero():
    network = SkipNetwork(tf.TensorSpec([3], tf.float32), 4, (16, 8))
    network.create_variables()
    shapes = [tuple(variable.shape) for variable in network.variables]
    assert shapes == [(3, 16), (16,), (16, 8), (8,), (8, 4), (4,), (3, 4)]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    before, state = network(tf.constant(x))
    assert state == ()
    linear = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    network.variables[-1].assign(linear)
    after, _ = network(tf.constant(x))
    np.testing.assert_allclose(after - before, x @ linear, atol=1e-5)
