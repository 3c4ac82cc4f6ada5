"""TF-Agents' own linear agents, for comparison with ours."""

from typing import Any

from trainer import agents
from trainer.linear import SufficientStatistics, disjoint


def linear_agent(statistics: SufficientStatistics, tikhonov: float, alpha: float, algorithm: str = "lin_ucb") -> Any:
    """TF-Agents' linear agent with the given statistics, float32; `greedy` is LinUCB with a bound of width 0.

    The artifact is made from the same statistics without this agent, which holds five variables per action and can't be
    traced at thousands of actions.
    """
    import tensorflow as tf
    from tf_agents.bandits.agents.lin_ucb_agent import LinearUCBAgent
    from tf_agents.bandits.agents.linear_bandit_agent import LinearBanditVariableCollection
    from tf_agents.bandits.agents.linear_thompson_sampling_agent import LinearThompsonSamplingAgent

    learned = LinearBanditVariableCollection(statistics.observation_dim, statistics.num_actions, dtype=tf.float32)
    learned.theta.assign(disjoint(statistics, tikhonov).theta)
    for k in range(statistics.num_actions):
        learned.cov_matrix_list[k].assign(statistics.a[k])
        learned.data_vector_list[k].assign(statistics.b[k])
        learned.num_samples_list[k].assign(statistics.n[k])
    time_step_spec, action_spec = agents.specs(statistics.observation_dim, statistics.num_actions)
    make = LinearThompsonSamplingAgent if algorithm == "lin_ts" else LinearUCBAgent
    return make(
        time_step_spec=time_step_spec,
        action_spec=action_spec,
        variable_collection=learned,
        alpha=0.0 if algorithm == "greedy" else alpha,
        tikhonov_weight=tikhonov,
        dtype=tf.float32,
    )
