from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces as gym_spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel

from seqwm.control.beam_search import SearchOptions, beam_search
from seqwm.control.cem import CEMOptions, CEMPolicy, plan
from seqwm.control.dream import DreamEnv, imagine
from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import gather, play
from seqwm.core.errors import DataError, RecipeError, SpaceError
from seqwm.core.protocols import Policy, WorldModel
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.make import make_vector
from seqwm.methods import trajectory_transformer
from seqwm.methods.trajectory_transformer import Options, TrajectoryTransformer, build, window_options
from seqwm.testing import check_policy, check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner

SMALL = Options(
    context_length=6,
    layers=2,
    heads=2,
    width=16,
    dropout=0.0,
    bins=8,
    termination_penalty=-5.0,
    planner=SearchOptions(horizon=3, beams=4, expansion=2),
)
BOX = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-1, 1, (2,), np.float32))


def make_store(episodes: int = 12, *, spaces: Spaces = BOX, rewards: bool = True, seed: int = 0) -> TrajectoryStore:
    """A walk that drifts where it is pushed; odd episodes terminate, even ones are cut."""
    rng = np.random.default_rng(seed)
    store = TrajectoryStore.create(None, spaces, rewards=rewards)
    for number in range(episodes):
        length = 3 if number == 1 else int(rng.integers(3, 15))
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        observations = np.cumsum(np.concatenate([np.zeros((1, 3)), actions @ np.ones((2, 3)) * [1, 0.5, 2]]), 0)
        store.append(
            Episode(
                observations=observations.astype(np.float32),
                actions=actions,
                rewards=actions.sum(-1).astype(np.float32) if rewards else None,
                terminated=number % 2 == 1,
                truncated=number % 2 == 0,
            )
        )
    return store


def make_model(positions: str = "learned", *, seed: int = 0, double: bool = False, **changes) -> TrajectoryTransformer:
    torch.manual_seed(seed)
    model = build(dataclasses.replace(SMALL, positions=positions, **changes), make_store())
    for parameter in model.parameters():  # larger weights than fresh ones, so that every token matters
        torch.nn.init.normal_(parameter, std=0.3)
    return (model.double() if double else model).eval()


def random_codes(model: TrajectoryTransformer, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    counts = model.tokenizer.discretizer.counts
    return (torch.rand(*shape, len(counts), generator=generator) * counts).long()


# -- what is learned -------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_cross_entropy_of_every_known_token_spelt_out() -> None:
    store, model = make_store(), make_model()
    batch = store.windows(6, 64, **window_options(SMALL)).batch(0)
    assert (batch.terminated.any(1) & (batch.timesteps[:, 0] == 0)).any()
    loss, figures = model.loss(batch)
    codes = model.tokenizer.discretizer.encode(model.tokenizer.numbers(batch))
    logits = model(codes).flatten(1, 2).detach()
    weights = [1, 1, 1, 5, 5, 1, 1]
    total, parts = [], {"observation": [], "action": [], "reward": [], "value": [], "next": []}
    names = ["next", "observation", "observation", "action", "action", "reward", "value"]
    for lane in range(64):
        rows = int(batch.valid[lane].sum())
        tokens = [(column, int(codes[lane, row, column]), 1.0) for row in range(rows) for column in range(7)]
        if bool(batch.terminated[lane].any()) and rows < 6:
            whole = int(batch.timesteps[lane, 0]) == 0  # one of these windows in 7 - rows does not look behind it
            tokens.append((0, model.config.codes, (6 - rows) / (7 - rows) if whole else 1.0))
        for place, (column, code, count) in list(enumerate(tokens))[1:]:
            entropy = -float(logits[lane, place - 1].log_softmax(-1)[code])
            total.append((weights[column] * entropy, count))
            parts[names[column]].append((entropy, count))
    weighted, counts = np.transpose(total)
    assert float(loss.detach()) == pytest.approx(weighted @ counts / counts.sum(), rel=1e-5)
    for name, counted in parts.items():
        entropies, counts = np.transpose(counted)
        assert float(figures[name]) == pytest.approx(entropies @ counts / counts.sum(), rel=1e-4)
    assert float(figures["clipped"]) == 0


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_what_stands_in_padding_changes_neither_loss_nor_gradient(positions: str) -> None:
    store, model = make_store(), make_model(positions)
    batch = store.windows(6, 16, **window_options(SMALL)).batch(1)
    assert not batch.valid.all()

    def noisy(leaf: Tensor) -> Tensor:
        hidden = ~batch.valid.view(*batch.valid.shape, *[1] * (leaf.ndim - 2))
        return torch.where(hidden, torch.randn_like(leaf), leaf)

    spoilt = dataclasses.replace(
        batch,
        observations=noisy(batch.observations),
        actions=noisy(batch.actions),
        rewards=noisy(batch.rewards),
        returns_to_go=noisy(batch.returns_to_go),
    )
    gradients = []
    for each in (batch, spoilt):
        model.zero_grad()
        model.loss(each)[0].backward()
        gradients.append(model.heads.grad.clone())
    assert torch.equal(model.loss(batch)[0], model.loss(spoilt)[0])
    assert torch.equal(*gradients)


def test_the_value_is_the_discounted_sum_of_later_rewards_with_the_penalty_for_true_ends_only() -> None:
    store, model = make_store(), make_model()
    windows = store.windows(1, 1, **window_options(SMALL) | {"overrun": 0})
    for number in (0, 1):
        episode = store.episode(number)
        steps = np.arange(len(episode))
        numbers = model.tokenizer.numbers(windows.gather(np.full_like(steps, number), steps))[:, 0]
        rewards = episode.rewards.astype(np.float64)
        if episode.terminated:
            rewards[-1] = -5.0
        values = [sum(0.99**k * r for k, r in enumerate(rewards[t + 1 :])) for t in range(len(rewards))]
        assert torch.allclose(numbers[:, -2].double(), torch.tensor(rewards), atol=1e-6)
        assert torch.allclose(numbers[:, -1].double(), torch.tensor(values), atol=1e-5)
        assert torch.equal(numbers[:, :3], torch.from_numpy(episode.observations[:-1]))
        assert torch.equal(numbers[:, 3:5], torch.from_numpy(episode.actions))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_no_prediction_depends_on_what_comes_later_or_on_any_value(positions: str) -> None:
    model = make_model(positions, double=True)
    codes = random_codes(model, 2, 6)
    logits = model(codes).flatten(1, 2)
    for place in range(6 * 7):
        changed = codes.clone().flatten(1)
        changed[:, place] = (changed[:, place] + 1) % model.tokenizer.discretizer.counts[place % 7]
        difference = (model(changed.view_as(codes)).flatten(1, 2) - logits).nan_to_num(0).abs().amax((0, 2))
        assert (difference[:place] == 0).all()
        assert (difference[place:] > 1e-9).all() == (place % 7 != 6)
        assert place % 7 != 6 or not difference.any()


def test_each_column_can_only_be_followed_by_codes_of_the_next_and_stop_only_by_a_value() -> None:
    model = make_model()
    probabilities = model(random_codes(model, 1, 2)).softmax(-1)[0, 0]
    counts = model.tokenizer.discretizer.counts.roll(-1)
    assert torch.equal((probabilities[:, :-1] > 0).sum(-1), counts)
    assert torch.equal(probabilities[:, -1] > 0, torch.tensor([False] * 6 + [True]))


@pytest.mark.learning
def test_stops_are_predicted_as_often_as_episodes_end() -> None:
    """Episodes end with probability 0.2 at every step: the model must say so at every row of a window."""
    rng = np.random.default_rng(0)
    store = TrajectoryStore.create(None, Spaces(gym_spaces.Discrete(2), gym_spaces.Discrete(2)))
    for _ in range(4000):
        length = int(rng.geometric(0.2))
        observations = rng.integers(0, 2, length + 1)
        rewards = rng.standard_normal(length).astype(np.float32)
        store.append(Episode(observations, rng.integers(0, 2, length), rewards, terminated=True, truncated=False))
    planner = SearchOptions(horizon=1)
    options = dataclasses.replace(SMALL, context_length=4, termination_penalty=None, planner=planner)
    torch.manual_seed(0)
    model = build(options, store)
    windows = store.windows(4, 256, **window_options(options))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        optimizer.zero_grad()
        model.loss(windows.batch(step))[0].backward()
        optimizer.step()
    model.eval()
    batch = windows.batch(1000)
    codes = model.tokenizer.discretizer.encode(model.tokenizer.numbers(batch))
    stops = model(codes).detach().softmax(-1)[:, :3, -1, -1]
    for row in range(3):
        assert float(stops[batch.valid[:, row], row].mean()) == pytest.approx(0.2, abs=0.03)


# -- the cache -------------------------------------------------------------------------------------


class Recorder:
    """A model that notes, for every branch, the codes so far and the logits it gave."""

    def __init__(self, model: TrajectoryTransformer, contexts: Tensor, rows: Tensor) -> None:
        self.model, self.contexts, self.rows = model, contexts, rows
        self.layout, self.checked = model.layout, 0
        self.expectation, self.distance, self.branch_bytes = model.expectation, model.distance, model.branch_bytes

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[RecordedMemory, Tensor]:
        memory, logits = self.model.prefill(codes, rows, horizon)
        starts = [codes[e, : rows[e]].flatten()[: -(self.layout.action + 2)][None] for e in range(len(rows))]
        self._check(starts, logits)
        return RecordedMemory(memory, starts), logits

    def extend(self, memory: RecordedMemory, codes: Tensor, column: int) -> Tensor:
        logits = self.model.extend(memory.memory, codes, column)
        memory.codes = [torch.cat([past, new[:, None]], 1) for past, new in zip(memory.codes, codes, strict=True)]
        self._check(memory.codes, logits)
        return logits

    def _check(self, codes: list[Tensor], logits: Tensor) -> None:
        for past, found in zip(codes, logits, strict=True):
            length = past.shape[1]
            whole = F.pad(past, (0, -length % self.layout.columns)).view(len(past), -1, self.layout.columns)
            expected = self.model(whole).flatten(1, 2)[:, length - 1]
            possible = expected > -torch.inf
            assert torch.equal(possible, found > -torch.inf)
            assert torch.allclose(found[possible], expected[possible], atol=1e-5)
            self.checked += len(past)


@dataclasses.dataclass
class RecordedMemory:
    memory: object
    codes: list[Tensor]

    def fork(self, width: int) -> RecordedMemory:
        return RecordedMemory(self.memory.fork(width), [past.repeat_interleave(width, 0) for past in self.codes])

    def keep(self, children: Tensor) -> RecordedMemory:
        kept = []
        for past, chosen in zip(self.codes, children, strict=True):
            by_parent = past.view(len(chosen), -1, past.shape[1])
            kept.append(torch.cat([family[index] for family, index in zip(by_parent, chosen, strict=True)]))
        return RecordedMemory(self.memory.keep(children), kept)

    def select(self, branches: Tensor) -> RecordedMemory:
        return RecordedMemory(
            self.memory.select(branches), [past[chosen] for past, chosen in zip(self.codes, branches, strict=True)]
        )


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    positions=st.sampled_from(["learned", "rotary"]),
    objective=st.sampled_from(["return", "goal", "likelihood"]),
    padded=st.booleans(),
    horizon=st.integers(1, 3),
)
def test_every_logit_of_a_search_is_that_of_the_whole_sequence(
    seed: int, positions: str, objective: str, padded: bool, horizon: int
) -> None:
    model = make_model(positions, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    contexts = random_codes(model, 3, 3, seed=seed)
    rows = torch.randint(1, 4, (3,), generator=generator) if padded else torch.full((3,), 3)
    goal = torch.randn(3, 3, generator=generator) if objective == "goal" else None
    recorder = Recorder(model, contexts, rows)
    options = SearchOptions(horizon=horizon, beams=3, expansion=2, observation_top_k=2)
    keys = torch.arange(3) + seed % 1000
    with torch.inference_mode():
        recorded = beam_search(recorder, contexts, rows, options, objective=objective, goal=goal, keys=keys)
        plain = beam_search(model, contexts, rows, options, objective=objective, goal=goal, keys=keys)
    assert recorder.checked > 3 * horizon * 5
    assert torch.equal(recorded.codes, plain.codes)
    assert torch.allclose(recorded.scores, plain.scores)


def test_rotary_logits_are_those_of_the_whole_sequence_when_old_transitions_are_forgotten() -> None:
    model = make_model("rotary", seed=5)
    contexts, rows = random_codes(model, 2, 6, seed=1), torch.tensor([6, 4])
    recorder = Recorder(model, contexts, rows)  # its whole sequences reach over 6 + 9 transitions, each token over 6
    options = SearchOptions(horizon=9, beams=2, expansion=2)
    beam_search(recorder, contexts, rows, options, keys=torch.arange(2))
    assert recorder.checked > 2 * 9 * 7


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_logits_of_products_in_bfloat16_are_those_of_float32_to_its_three_digits(positions: str) -> None:
    model = build(dataclasses.replace(SMALL, positions=positions), make_store()).eval()
    half = model.with_half_products()
    contexts, rows = random_codes(model, 2, 3), torch.tensor([3, 2])
    with torch.inference_mode():
        (memory, exact), (half_memory, near) = (each.prefill(contexts, rows, 1) for each in (model, half))
        code = torch.zeros(2, 1, dtype=torch.int64)
        pairs = [(exact, near), (model.extend(memory, code, 3), half.extend(half_memory, code, 3))]
    for exact, near in pairs:
        possible = exact > -torch.inf
        assert near.dtype is torch.float32
        assert torch.allclose(near[possible], exact[possible], atol=0.02)
        assert not torch.equal(near, exact)
    assert next(model.transformer.parameters()).dtype is torch.float32


def test_a_search_in_bfloat16_finds_plans_that_promise_as_much_but_for_rounding() -> None:
    model = make_model("rotary", seed=3)
    contexts, rows = random_codes(model, 3, 3), torch.tensor([3, 2, 3])
    options = SearchOptions(horizon=4, beams=16, expansion=4, sample=False)
    exact, near = (beam_search(each, contexts, rows, options) for each in (model, model.with_half_products()))
    assert torch.allclose(near.scores[:, 0], exact.scores[:, 0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("able", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_planner_is_in_half_precision_where_that_is_asked_for_and_the_machine_computes_in_it(able, kind, monkeypatch):
    monkeypatch.setattr(trajectory_transformer, "computes_in_bf16", lambda device: able)
    network = make_model().policy(planner=SearchOptions(horizon=2, context=2, precision="bf16"))._model
    assert network.transformer.blocks[0].qkv.weight.dtype is kind


def test_a_plan_longer_than_the_trained_positions_is_refused_with_the_figures() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"4 logged and 3 imagined transitions of 7 tokens; expected at most 6"):
        model.prefill(random_codes(model, 1, 4), torch.tensor([4]), 3)
    with pytest.raises(ValueError, match=r"planner: found context 4 and horizon 5, expected at most the 6 transitions"):
        dataclasses.replace(SMALL, planner=SearchOptions(horizon=5, context=4))
    with pytest.raises(ValueError, match="found context 1 and horizon 7"):
        model.policy(planner=SearchOptions(horizon=7))


# -- acting ----------------------------------------------------------------------------------------


def act_through(policy, observations: Tensor, rewards: Tensor, first: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Actions [T, B, A] over T steps, and the last state."""
    state, actions = policy.initial(first.shape[1]), []
    for t in range(len(observations)):
        action, state = policy.act(state, observations[t], rewards[t], first[t])
        actions.append(action)
    return torch.stack(actions), state


def test_a_planner_is_a_policy_whose_actions_are_the_best_plans_of_its_own_history() -> None:
    model = make_model()
    policy = model.policy(seed=3)
    assert isinstance(policy, Policy)
    observations, rewards = torch.randn(7, 2, 3), torch.randn(7, 2)
    first = torch.zeros(7, 2, dtype=torch.bool)
    first[0] = True
    first[4, 1] = True
    actions, _ = act_through(policy, observations, rewards, first)
    tokenizer = model.tokenizer
    for lane, begin, t in [(0, 0, 0), (0, 0, 2), (0, 0, 6), (1, 4, 4), (1, 4, 6)]:
        steps = list(range(max(begin, t - 2), t + 1))  # context 3: what six transitions leave beside a horizon of 3
        codes = torch.zeros(1, 3, 7, dtype=torch.int64)
        for row, step in enumerate(steps):
            codes[0, row, :3] = tokenizer.encode_observation(observations[step, lane])[0]
            if step < t:
                codes[0, row, 3:5] = tokenizer.encode_action(actions[step, lane])
                codes[0, row, 5] = tokenizer.encode_reward(rewards[step + 1, lane][None])[0]
        key = torch.tensor([t - begin + 3 * 1_000_003])
        plan = beam_search(model, codes, torch.tensor([len(steps)]), SMALL.planner, keys=key)
        assert torch.equal(tokenizer.decode_action(plan.codes[0, 0, 0, 3:5]), actions[t, lane])


def test_lanes_act_together_as_they_would_alone_and_reset_themselves() -> None:
    policy = make_model().policy()
    observations, rewards = torch.randn(6, 4, 3), torch.randn(6, 4)
    first = torch.rand(6, 4) < 0.3
    first[0] = True
    together, _ = act_through(policy, observations, rewards, first)
    for lane in range(4):
        one = slice(lane, lane + 1)
        alone, _ = act_through(policy, observations[:, one], rewards[:, one], first[:, one])
        assert torch.equal(alone, together[:, one])


def test_a_plan_is_followed_for_as_many_steps_as_asked_and_dropped_where_an_episode_begins() -> None:
    model = make_model()
    options = dataclasses.replace(SMALL.planner, plan_every=3)
    often, seldom = model.policy(), model.policy(planner=options)
    observations, rewards = torch.randn(3, 1, 3), torch.zeros(3, 1)
    first = torch.tensor([[True], [False], [False]])
    whole = beam_search(
        model,
        F.pad(model.tokenizer.encode_observation(observations[0])[0][:, None], (0, 4, 0, 2)),
        torch.tensor([1]),
        options,
        keys=torch.tensor([0]),
    )
    assert int(whole.lengths[0, 0]) == 3
    expected = model.tokenizer.decode_action(whole.codes[0, 0, :, 3:5])
    actions, state = act_through(seldom, observations, rewards, first)
    assert torch.equal(actions[:, 0], expected)
    assert torch.equal(actions[0], act_through(often, observations, rewards, first)[0][0])
    action, _ = seldom.act(state, observations[0], rewards[0], torch.tensor([True]))
    assert torch.equal(action, actions[0])


def test_observations_beyond_the_training_data_are_clipped_and_counted() -> None:
    policy = make_model().policy()
    observations = torch.zeros(3, 2, 3)
    observations[0, 0, 1] = 1e6
    observations[1, 0] = -1e6
    first = torch.tensor([[True, True], [False, False], [False, True]])
    _, state = act_through(policy, observations, torch.zeros(3, 2), first)
    assert state["clipped"].tolist() == [4, 0]


def test_a_planner_can_seek_a_goal_or_imitate() -> None:
    model = make_model()
    observation = torch.randn(2, 3)

    def first_action(policy) -> Tensor:
        return policy.act(policy.initial(2), observation, torch.zeros(2), torch.tensor([True, True]))[0]

    codes = F.pad(model.tokenizer.encode_observation(observation)[0][:, None], (0, 4, 0, 2))
    sought = {"objective": "goal", "goal": torch.tensor([[1.0, torch.nan, -2.0]]).expand(2, -1)}
    asked = [({"objective": "goal", "goal": {"observation[2]": -2.0, "observation[0]": 1.0}}, sought)]
    asked += [({"objective": "likelihood"}, {"objective": "likelihood"})]
    for recipe, search in asked:
        best = beam_search(model, codes, torch.tensor([1, 1]), SMALL.planner, keys=torch.zeros(2).long(), **search)
        expected = model.tokenizer.decode_action(best.codes[:, 0, 0, 3:5])
        assert torch.equal(first_action(model.policy(**recipe)), expected)
        assert torch.equal(first_action(make_model(**recipe).policy()), expected)
    with pytest.raises(RecipeError, match=r"goal: observation\[3\]: unknown column; did you mean 'observation\[\d\]'"):
        model.policy(objective="goal", goal={"observation[3]": 1.0})
    with pytest.raises(ValueError, match="goal: found objective 'goal' without a goal, expected a goal with objective"):
        dataclasses.replace(SMALL, objective="goal")


def test_discrete_actions_come_out_as_the_environment_names_them() -> None:
    spaces = Spaces(
        gym_spaces.Dict(place=gym_spaces.Discrete(4, start=2), speed=gym_spaces.Box(-9, 9, (2,), np.float64)),
        gym_spaces.Discrete(3, start=-1),
    )
    rng = np.random.default_rng(0)
    store = TrajectoryStore.create(None, spaces)
    for _ in range(5):
        observations = {"place": rng.integers(2, 6, 8), "speed": rng.standard_normal((8, 2))}
        actions, rewards = rng.integers(-1, 2, 7), rng.standard_normal(7).astype(np.float32)
        store.append(Episode(observations, actions, rewards, terminated=False, truncated=True))
    model = build(SMALL, store).eval()
    batch = store.windows(6, 8, **window_options(SMALL)).batch(0)
    assert torch.isfinite(model.loss(batch)[0])
    policy = model.policy()
    observation = {"place": torch.tensor([2, 5]), "speed": torch.zeros(2, 2)}
    action, _ = policy.act(policy.initial(2), observation, torch.zeros(2), torch.tensor([True, True]))
    assert action.dtype == torch.int64
    assert set(action.tolist()) <= {-1, 0, 1}
    decoded = model.decode(model.encode(batch))
    last = batch.valid.sum(1) - 1
    assert torch.equal(decoded["place"], batch.observations["place"][torch.arange(8), last])


@pytest.mark.learning
def test_planning_outdoes_by_far_the_random_play_that_it_was_learned_from() -> None:
    """CartPole from 20 000 uniformly random steps (mean return 22): a policy that imitates them is worth no more."""
    vector = make_vector("CartPole-v1", 16)
    spaces = Spaces(vector.single_observation_space, vector.single_action_space)
    store = TrajectoryStore.create(None, spaces)
    gather(vector, RandomPolicy(spaces.action, seed=0), store, 20_000, seed=0)
    options = Options(layers=2, heads=2, width=64, dropout=0.0, bins=50, planner=SearchOptions(horizon=6, beams=16))
    torch.manual_seed(0)
    model = build(options, store)
    training = TrainOptions(steps=600, learning_rate=2e-3, warmup_steps=50, schedule="cosine", weight_decay=0.1)
    learner = SupervisedLearner(model, store.windows(10, 64, **window_options(options)), training, seed=0)
    for step in range(training.steps):
        learner.update(step)
    outcomes = play(vector, model.eval().policy(), range(10))
    assert store.returns.mean() < 25
    assert np.mean([outcome.achieved for outcome in outcomes]) > 4 * store.returns.mean()


# -- dreaming --------------------------------------------------------------------------------------


def context_of(store: TrajectoryStore, length: int = 6, lanes: int = 5):
    return store.windows(length, lanes, discount=0.99).batch(3)


def test_it_is_a_world_model_that_stands_before_the_last_observation() -> None:
    store, model = make_store(), make_model()
    assert isinstance(model, WorldModel)
    batch = context_of(store)
    state = model.encode(batch)
    last = batch.observations[torch.arange(5), batch.valid.sum(1) - 1]
    codes, _ = model.tokenizer.encode_observation(last)
    assert torch.equal(model.decode(state), model.tokenizer.decode_observation(codes))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_it_keeps_what_a_world_model_promises_and_policies_play_in_its_dreams(positions: str) -> None:
    store, model = make_store(), make_model(positions)
    check_world_model(model, context_of(store), store.spaces)
    dream = DreamEnv(model, store.spaces, store.windows(model.window_length, 1), lanes=4, horizon=9)
    outcomes = play(dream, model.policy(), [5, 6, 7, 8])
    assert outcomes == play(dream, model.policy(), [5, 6, 7, 8])
    assert all(one.terminated or one.length == 9 for one in outcomes)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("sampled", [False, True])
def test_steps_with_a_cache_are_steps_of_the_whole_sequence(positions: str, sampled: bool) -> None:
    """Twenty steps, more than the context holds, against the forward pass over everything that may be read."""
    store, model = make_store(), make_model(positions, seed=2)
    layout, length = model.layout, SMALL.context_length
    state = model.encode(context_of(store, length=4))
    lanes, drop = 5, SMALL.context_length // 2
    pasts = [state["codes"][lane, : state["rows"][lane]].clone() for lane in range(lanes)]
    generator, again = (torch.Generator().manual_seed(9) if sampled else None for _ in range(2))
    steps = torch.Generator().manual_seed(1)
    for _ in range(20):
        action = torch.rand(lanes, 2, generator=steps) * 2 - 1
        if positions == "learned":
            pasts = [past[drop:] if len(past) == length else past for past in pasts]
        pasts = [torch.cat([past, torch.zeros(1, layout.columns, dtype=torch.int64)]) for past in pasts]
        for lane, past in enumerate(pasts):
            past[-2, 3:5] = model.tokenizer.encode_action(action)[lane]
        ended = torch.zeros(lanes, dtype=torch.bool)
        for row, column in [(-2, 5), (-1, 0), (-1, 1), (-1, 2)]:
            before = (row, column - 1) if column else (row - 1, layout.columns - 1)
            logits = torch.stack([model(past[None])[0][before] for past in pasts])
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=again)[:, 0] if sampled else None
            token = logits.argmax(-1) if drawn is None else drawn
            stopped = token == model.config.codes
            ended |= stopped
            token = torch.where(stopped, logits[:, :-1].argmax(-1), token)
            for lane, past in enumerate(pasts):
                past[row, column] = token[lane]
        step = model.step(state, action, generator)
        state = step.state
        assert torch.equal(step.terminated, ended)
        for lane, past in enumerate(pasts):
            rows = int(state["rows"][lane])
            assert torch.equal(state["codes"][lane, :rows, :6], past[-rows:, :6])
            assert rows == min(len(past), length)
    assert torch.isfinite(state["cache"]).all()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_it_keeps_what_a_world_model_and_a_policy_promise(positions: str) -> None:
    store, model = make_store(), make_model(positions, seed=4)
    context = context_of(store, length=SMALL.context_length, lanes=6)
    assert not context.valid.all()
    check_world_model(model, context, store.spaces)
    check_policy(lambda lanes: model.policy(), store.spaces)


def test_it_can_be_dreamt_in_as_an_environment_by_its_own_planner() -> None:
    store, model = make_store(), make_model(seed=4)
    dream = DreamEnv(model, store.spaces, store.windows(model.window_length, 1), lanes=3, horizon=9)
    outcomes = play(dream, model.policy(), range(3))
    assert all(outcome.length == 9 or outcome.terminated for outcome in outcomes)
    again = play(dream, model.policy(), range(3))
    assert outcomes == again
    rewards = model.tokenizer.discretizer.values[model.layout.reward]
    least, most = min(float(rewards.min()), model.config.end_reward), max(float(rewards.max()), model.config.end_reward)
    assert all(least * one.length <= one.achieved <= most * one.length for one in outcomes)


def test_the_cross_entropy_method_finds_in_it_what_trying_every_plan_finds() -> None:
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), gym_spaces.Discrete(3))
    rng = np.random.default_rng(0)
    store = TrajectoryStore.create(None, spaces)
    for _ in range(6):
        observations, actions = rng.standard_normal((9, 2)).astype(np.float32), rng.integers(0, 3, 8)
        rewards = rng.standard_normal(8).astype(np.float32)
        store.append(Episode(observations, actions, rewards, terminated=False, truncated=True))
    torch.manual_seed(0)
    model = build(dataclasses.replace(SMALL, termination_penalty=None), store).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    state = model.encode(store.windows(6, 4, discount=0.99).batch(0))
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    everywhere = {name: tensor.repeat_interleave(27, 0) for name, tensor in state.items()}
    tried = imagine(model, everywhere, every.repeat(4, 1), 3)
    alive = torch.cat([torch.ones(108, 1), (~tried.terminated).cumprod(1)[:, :-1]], 1)
    best = (tried.rewards * alive).sum(1).view(4, 27).amax(1)
    options = CEMOptions(horizon=3, candidates=150, elites=15, iterations=3)
    found = imagine(model, state, plan(model, state, spaces.action, options, torch.arange(4)).actions, 3)
    alive = torch.cat([torch.ones(4, 1), (~found.terminated).cumprod(1)[:, :-1]], 1)
    assert torch.allclose((found.rewards * alive).sum(1), best)
    policy = CEMPolicy(model, spaces, model.window_length, dataclasses.replace(options, candidates=20))
    check_policy(lambda lanes: policy, spaces)


def test_the_observation_of_an_end_is_the_likeliest_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = make_store(), make_model()
    state = model.encode(context_of(store))
    going_on = model.step(state, torch.zeros(5, 2), None)
    certain = model.possible()
    certain[6, -1] = 1e6
    monkeypatch.setattr(model, "possible", lambda: certain)
    ended = model.step(state, torch.zeros(5, 2), None)
    assert ended.terminated.all()
    assert not going_on.terminated.any()
    assert torch.equal(model.decode(ended.state), model.decode(going_on.state))


def test_the_reward_of_an_end_is_the_one_that_the_penalty_hides() -> None:
    store, model = make_store(), make_model()
    ends = [float(store.episode(n).rewards[-1]) for n in range(12) if store.episode(n).terminated]
    assert model.config.end_reward == pytest.approx(np.mean(ends), rel=1e-6)
    with torch.no_grad():
        model.heads[6].zero_()
        model.heads[6, :, -1] = 1.0
        model.transformer.norm.bias.fill_(1.0)
    step = model.step(model.encode(context_of(store)), torch.zeros(5, 2), None)
    assert step.terminated.all()
    assert torch.allclose(step.reward, torch.full((5,), model.config.end_reward))


# -- keeping and refusing --------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_saved_model_plans_as_it_did(tmp_path: Path, positions: str) -> None:
    model = make_model(positions, binning_of={"reward": "uniform"})
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, TrajectoryTransformer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    observations, rewards = torch.randn(4, 2, 3), torch.randn(4, 2)
    first = torch.zeros(4, 2, dtype=torch.bool)
    first[0] = True
    before, _ = act_through(model.policy(), observations, rewards, first)
    after, _ = act_through(loaded.policy(), observations, rewards, first)
    assert torch.equal(before, after)


def test_bins_can_be_chosen_by_column_and_by_group() -> None:
    model = build(
        dataclasses.replace(SMALL, binning_of={"action": "uniform", "observation[1]": "uniform"}), make_store()
    )
    edges = model.tokenizer.discretizer.edges
    even = [bool((edges[column, :7].diff(n=2).abs() < 1e-4).all()) for column in range(7)]
    assert even == [False, True, False, True, True, False, False]
    with pytest.raises(RecipeError, match=r"model\.binning_of\.rewrad: unknown column; did you mean 'reward'\?"):
        build(dataclasses.replace(SMALL, binning_of={"rewrad": "uniform"}), make_store())


def test_planning_for_a_return_without_rewards_is_refused_before_training_but_imitating_is_not() -> None:
    store = make_store(rewards=False)
    with pytest.raises(DataError, match=r"no-rewards.*model\.objective to 'likelihood' or 'goal'"):
        build(SMALL, store)
    model = build(dataclasses.replace(SMALL, objective="likelihood"), store).eval()
    assert torch.isfinite(model.loss(store.windows(6, 8, **window_options(SMALL)).batch(0))[0])
    with pytest.raises(DataError, match=r"no-rewards.*model\.objective to 'likelihood' or 'goal'"):
        model.policy(objective="return")
    policy = model.policy()
    action, _ = policy.act(policy.initial(1), torch.zeros(1, 3), torch.zeros(1), torch.tensor([True]))
    assert action.shape == (1, 2)


def test_data_that_cannot_be_planned_from_is_refused_by_name() -> None:
    def store_of(spaces: Spaces, observations: np.ndarray, actions: np.ndarray | None) -> TrajectoryStore:
        store = TrajectoryStore.create(None, spaces)
        store.append(Episode(observations, actions, np.zeros(4, np.float32), terminated=False, truncated=True))
        return store

    line, choice = gym_spaces.Box(-np.inf, np.inf, (1,), np.float32), gym_spaces.Discrete(2)
    with pytest.raises(DataError, match="no-actions"):
        build(SMALL, store_of(Spaces(line, None), np.zeros((5, 1), np.float32), None))
    with pytest.raises(DataError, match=r"column 'reward'.*the reward 0 and the value 0 in every row"):
        build(SMALL, store_of(Spaces(line, choice), np.zeros((5, 1), np.float32), np.array([0, 1, 0, 1])))
    frames = gym_spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(SpaceError, match=r"observation: found images \(8, 8, 3\)"):
        build(SMALL, store_of(Spaces(frames, choice), np.zeros((5, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])))


def test_target_returns_are_not_for_a_planner() -> None:
    with pytest.raises(ValueError, match="takes no target returns"):
        make_model().policy([100.0])
