"""The viewers of the loop: what they like, which movies they are offered, and how they answer.

Their tastes come from real ratings (`beam_jobs.worlds`). `orchestration.loop.simulator` makes traffic of them.
"""

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.worlds import WORLDS
from contracts.errors import InputError
from orchestration.loop.settings import LoopSettings

ANSWER_SECONDS = (0.05, 1.0)  # from the decision to the reward, drawn uniformly
LATE_SECONDS = (0.5, 1.5)  # from the end of the reward window to a late reward, drawn uniformly
SHARE_LATE = 1 / 3  # of the faulty decisions; a third are answered twice, and a third have an orphan beside them


def load_movielens(settings: LoopSettings) -> MovieLens:
    """The viewers of these settings, and the movies on offer to them once serving has begun.

    Raises InputError for ratings that cannot be read, and for sizes that the ratings do not allow.
    """
    if settings.world == "trends" and not settings.drift:
        raise InputError("--drift: above 0 in the world trends, where it moves the popularity of movies, got 0")
    movielens = WORLDS[settings.world].build(
        load_ratings(settings.ratings),
        num_actions=settings.num_actions,
        rank=settings.rank,
        reward_noise=settings.reward_noise,
        seed=settings.seed,
    )
    if settings.new_movies + settings.masked_movies > settings.num_actions - 2:
        raise InputError(
            f"--new-movies and --masked-movies must leave 2 of the {settings.num_actions} movies to start with,"
            f" got {settings.new_movies} and {settings.masked_movies}"
        )
    movielens = movielens.masking(
        movielens.drawn_actions(settings.new_movies + settings.masked_movies)[settings.new_movies :]
    )
    return movielens if settings.arm_features == "none" else movielens.featured()


def new_movies(settings: LoopSettings, movielens: MovieLens) -> list[int]:
    """The actions of the movies that come out only when serving begins, drawn at random from all movies."""
    return movielens.drawn_actions(settings.new_movies)


def share_answered_in_time(settings: LoopSettings, serving_began: bool) -> float:
    """The expected share of decisions with a reward within the reward window.

    Before serving begins, decisions and rewards are those of `beam_jobs.generate_movielens`, without faults.
    """
    from beam_jobs.generate_movielens import GeneratorSettings  # it imports Beam, which viewers do without

    soonest, latest = ANSWER_SECONDS if serving_began else (0.0, GeneratorSettings.reward_delay_seconds)
    late = settings.fault_rate * SHARE_LATE if serving_began else 0.0
    soon = min(max((settings.reward_window_seconds - soonest) / (latest - soonest), 0.0), 1.0)
    return (1 - settings.no_reward_probability) * (1 - late) * soon
