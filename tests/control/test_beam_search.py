from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqwm.control.beam_search import Objective, SearchOptions, beam_search
from seqwm.tokenizers.transition import TokenLayout

EXHAUSTIVE = SearchOptions(horizon=2, beams=4096, expansion=4096, sample=False, action_nucleus=1.0)


@dataclass
class Hidden:
    """The past of N branches as one recurrent vector each, [E, N, S]; forked children are flat branches."""

    state: Tensor
    parents: int

    def fork(self, width: int) -> Hidden:
        return Hidden(self.state.repeat_interleave(width, 1), self.parents)

    def keep(self, children: Tensor) -> Hidden:
        environments, parents, _ = children.shape
        by_parent = self.state.view(environments, parents, -1, self.state.shape[-1])
        kept = by_parent.gather(2, children[..., None].expand(-1, -1, -1, self.state.shape[-1]))
        return Hidden(kept.flatten(1, 2), parents)

    def select(self, branches: Tensor) -> Hidden:
        return Hidden(self.state.gather(1, branches[..., None].expand(-1, -1, self.state.shape[-1])), 0)


class RandomWorld:
    """A recurrent network with random weights as a model of transitions: any code depends on all before it."""

    def __init__(self, seed: int, counts: tuple[int, ...], observation: int, action: int, stops: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.layout = TokenLayout(observation, action, discount=0.8)
        self.counts, self.stops = counts, stops
        self.vocabulary = max(counts)
        size = 6
        self.recur = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.embed = torch.randn(len(counts), self.vocabulary + 1, size, generator=generator, dtype=torch.float64)
        self.heads = 2 * torch.randn(len(counts), size, self.vocabulary + 1, generator=generator, dtype=torch.float64)
        self.values = torch.randn(len(counts), self.vocabulary, generator=generator, dtype=torch.float64)

    def advance(self, state: Tensor, codes: Tensor, column: int) -> tuple[Tensor, Tensor]:
        state = torch.tanh(state @ self.recur + self.embed[column, codes])
        following = (column + 1) % len(self.counts)
        logits = state @ self.heads[following]
        logits[..., self.counts[following] : -1] = -torch.inf
        if following != 0 or not self.stops:
            logits[..., -1] = -torch.inf
        return state, logits

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[Hidden, Tensor]:
        state = torch.zeros(len(codes), 1, self.recur.shape[0], dtype=torch.float64)
        for index in range(len(codes)):
            alone = state[index : index + 1]
            flat = codes[index, : rows[index]].flatten()[: -(self.layout.action + 2)]
            for place, code in enumerate(flat):
                alone, logits = self.advance(alone, code[None, None], place % len(self.counts))
            state[index : index + 1] = alone
            if index == 0:
                together = torch.zeros(len(codes), *logits.shape[1:], dtype=torch.float64)
            together[index : index + 1] = logits
        return Hidden(state, 1), together

    def branch_bytes(self, horizon: int) -> int:
        return 48

    def extend(self, memory: Hidden, codes: Tensor, column: int) -> Tensor:
        memory.state, logits = self.advance(memory.state, codes, column)
        return logits

    def expectation(self, logits: Tensor, column: int) -> Tensor:
        return logits[..., :-1].softmax(-1) @ self.values[column]

    def distance(self, codes: Tensor, goal: Tensor) -> Tensor:
        observed = torch.stack([self.values[c][codes[..., c]] for c in range(self.layout.observation)], -1)
        return (observed - goal[:, None]).square().nan_to_num(0).sum(-1).sqrt()


def enumerate_scores(
    world: RandomWorld, context: Tensor, horizon: int, objective: Objective, goal: Tensor | None
) -> float:
    """The best score over all sequences, one by one and without any search."""
    layout, best = world.layout, -torch.inf
    observations, actions = range(layout.observation), range(layout.observation, layout.reward)

    def feed(memory: Hidden, code: int, column: int) -> tuple[Hidden, Tensor]:
        memory = Hidden(memory.state.clone(), 1)
        return memory, world.extend(memory, torch.tensor([[code]]), column)[0, 0]

    def transition(memory: Hidden, logits: Tensor, depth: int, gathered: float, total: float, nearest: float) -> None:
        nonlocal best
        for action in itertools.product(*(range(world.counts[c]) for c in actions)):
            chosen, following, log_probability = memory, logits, total
            for code, column in zip(action, actions, strict=True):
                log_probability += float(following.log_softmax(-1)[code])
                chosen, following = feed(chosen, code, column)
            rewards = range(world.counts[layout.reward]) if objective == "likelihood" else [int(following.argmax())]
            for reward in rewards:
                with_reward = log_probability + float(following.log_softmax(-1)[reward])
                expected = gathered + layout.discount**depth * float(world.expectation(following, layout.reward))
                after, value_logits = feed(chosen, reward, layout.reward)
                value = float(world.expectation(value_logits, layout.value))
                if depth + 1 == horizon and objective != "goal":
                    finish = expected + layout.discount**horizon * value
                    best = max(best, with_reward if objective == "likelihood" else finish)
                    continue
                after, observed = feed(after, 0, layout.value)
                observe(after, observed, depth + 1, expected, with_reward, nearest)

    def observe(memory: Hidden, logits: Tensor, depth: int, gathered: float, total: float, nearest: float) -> None:
        nonlocal best
        paths = [(memory, logits, total, ())]
        for column in observations:
            longer = []
            for past, following, log_probability, codes in paths:
                likeliest = [int(following.argmax())]
                for code in range(world.vocabulary + 1) if objective == "likelihood" else likeliest:
                    step = log_probability + float(following.log_softmax(-1)[code])
                    if step == -torch.inf:
                        continue
                    if code == world.vocabulary:
                        best = max(best, {"return": gathered, "goal": -nearest, "likelihood": step}[objective])
                        continue
                    longer.append((*feed(past, code, column), step, (*codes, code)))
            paths = longer
        for past, following, log_probability, codes in paths:
            reached = nearest
            if goal is not None:
                reached = min(nearest, float(world.distance(torch.tensor([[codes]]), goal)))
            if depth < horizon:
                transition(past, following, depth, gathered, log_probability, reached)
            else:
                best = max(best, -reached)

    memory, logits = world.prefill(context[None], torch.tensor([len(context)]), horizon)
    transition(memory, logits[0, 0], 0, 0.0, 0.0, torch.inf)
    return best


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    counts=st.tuples(*[st.integers(1, 3)] * 5),
    split=st.sampled_from([(2, 1), (1, 2)]),
    horizon=st.integers(1, 2),
    objective=st.sampled_from(["return", "goal", "likelihood"]),
    stops=st.booleans(),
    sample=st.booleans(),
)
def test_a_search_with_room_for_every_sequence_finds_what_enumeration_finds(
    seed: int,
    counts: tuple[int, ...],
    split: tuple[int, int],
    horizon: int,
    objective: Objective,
    stops: bool,
    sample: bool,
) -> None:
    world = RandomWorld(seed, counts, *split, stops)
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.stack([torch.randint(0, n, (3, 2), generator=generator) for n in counts], -1)
    rows = torch.tensor([2, 1, 2])
    goal = torch.randn(3, split[0], generator=generator, dtype=torch.float64) if objective == "goal" else None
    likeliest = 0 if objective == "likelihood" else 1  # imitation ranges over imagined observations too
    options = replace(EXHAUSTIVE, horizon=horizon, sample=sample, observation_top_k=likeliest)
    plan = beam_search(world, contexts, rows, options, objective=objective, goal=goal, keys=torch.arange(3))
    for index in range(3):
        one_goal = None if goal is None else goal[index : index + 1]
        brute = enumerate_scores(world, contexts[index, : rows[index]], horizon, objective, one_goal)
        assert float(plan.scores[index, 0]) == pytest.approx(brute, abs=1e-9)


def narrow(seed: int = 3, **changes: object) -> tuple[RandomWorld, Tensor, SearchOptions]:
    world = RandomWorld(seed, (4, 3, 5, 4, 3, 3), observation=2, action=2, stops=True)
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.stack([torch.randint(0, n, (6, 2), generator=generator) for n in world.counts], -1)
    options = replace(SearchOptions(horizon=4, beams=5, expansion=3, context=2, action_nucleus=1.0), **changes)
    return world, contexts, options


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("objective", ["return", "likelihood"])
def test_environments_planned_together_are_planned_as_if_alone(
    objective: Objective, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, contexts, options = narrow(observation_top_k=0)
    rows, keys = torch.tensor([2, 1, 2, 2, 1, 2]), torch.arange(6) * 7
    together = beam_search(world, contexts, rows, options, objective=objective, keys=keys)
    monkeypatch.setattr("seqwm.control.beam_search.CPU_BYTES", 4 * options.beams * 48)  # four, then two
    in_groups = beam_search(world, contexts, rows, options, objective=objective, keys=keys)
    assert torch.equal(in_groups.codes, together.codes)
    for index in range(6):
        one = slice(index, index + 1)
        alone = beam_search(world, contexts[one], rows[one], options, objective=objective, keys=keys[one])
        assert torch.equal(alone.codes, together.codes[one])
        assert torch.allclose(alone.scores, together.scores[one])
    assert torch.get_num_threads() == threads


def test_the_score_of_every_beam_is_the_objective_of_its_codes() -> None:
    world, contexts, options = narrow()
    rows = torch.full((6,), 2)
    plan = beam_search(world, contexts, rows, options, keys=torch.arange(6))
    layout = world.layout
    for index, beam in itertools.product(range(6), range(5)):
        codes, length = plan.codes[index, beam], int(plan.lengths[index, beam])
        memory, logits = world.prefill(contexts[index : index + 1], rows[:1], 4)
        score = 0.0
        for depth in range(length):
            for column in range(layout.observation if depth == 0 else 0, layout.columns):
                if column == layout.reward:
                    score += layout.discount**depth * float(world.expectation(logits, column))
                if column == layout.value:
                    value = float(world.expectation(logits, column))
                logits = world.extend(memory, codes[depth, column].view(1, 1), column)
        if length == options.horizon:
            score += layout.discount**length * value
        else:
            assert int(logits.argmax()) == world.vocabulary  # it did end there
            assert not codes[length:].any()
        assert float(plan.scores[index, beam]) == pytest.approx(score, abs=1e-9)
    assert (plan.scores.diff(dim=1) <= 0).all()
    assert (plan.lengths < 4).any()
    assert (plan.lengths == 4).any()


def test_proposals_from_one_root_never_repeat() -> None:
    world, contexts, options = narrow(horizon=1, beams=12, expansion=1)
    plan = beam_search(world, contexts, torch.full((6,), 2), options, keys=torch.arange(6))
    for index in range(6):
        assert len({tuple(codes) for codes in plan.codes[index, :, 0, 2:4].tolist()}) == 12


def test_sampled_actions_follow_the_models_distribution() -> None:
    world, contexts, options = narrow(horizon=1, beams=1, expansion=1)
    draws = 20_000
    plan = beam_search(
        world, contexts[:1].expand(draws, -1, -1), torch.full((draws,), 2), options, keys=torch.arange(draws)
    )
    _, logits = world.prefill(contexts[:1], torch.tensor([2]), 1)
    expected = logits[0, 0, :5].softmax(-1)
    drawn = torch.bincount(plan.codes[:, 0, 0, 2], minlength=5) / draws
    assert torch.allclose(drawn.double(), expected, atol=5 * (0.25 / draws) ** 0.5)


def test_the_second_of_two_draws_follows_the_distribution_without_the_first() -> None:
    world, contexts, options = narrow(horizon=1, beams=2, expansion=1)
    draws = 20_000
    plan = beam_search(
        world, contexts[:1].expand(draws, -1, -1), torch.full((draws,), 2), options, keys=torch.arange(draws)
    )
    memory, logits = world.prefill(contexts[:1], torch.tensor([2]), 1)
    joint = torch.zeros(5, 4, dtype=torch.float64)
    for first, probability in enumerate(logits[0, 0, :5].softmax(-1)):
        branch = Hidden(memory.state.clone(), 1)
        following = world.extend(branch, torch.tensor([[first]]), 2)
        joint[first] = probability * following[0, 0, :4].softmax(-1)
    p = joint.flatten()
    pairs = p[:, None] * p / (1 - p[:, None])
    pairs.fill_diagonal_(0)
    expected = pairs.sum(0) + pairs.sum(1)  # how often each action sequence is in the pair
    places = plan.codes[:, :, 0, 2] * 4 + plan.codes[:, :, 0, 3]
    drawn = torch.bincount(places.flatten(), minlength=20) / draws
    assert torch.allclose(drawn.double(), expected, atol=5 * (0.25 / draws) ** 0.5)


def test_limits_keep_the_likeliest_codes_only() -> None:
    world, contexts, options = narrow(horizon=1, beams=1, expansion=1)
    draws = 2_000
    wide, rows, keys = contexts[:1].expand(draws, -1, -1), torch.full((draws,), 2), torch.arange(draws)
    _, logits = world.prefill(contexts[:1], torch.tensor([2]), 1)
    falling = logits[0, 0, :5].softmax(-1).sort(descending=True)
    top = beam_search(world, wide, rows, replace(options, action_top_k=2), keys=keys).codes[:, 0, 0, 2]
    assert set(top.tolist()) == set(falling.indices[:2].tolist())
    share = float(falling.values[:3].sum()) - 1e-6
    nucleus = beam_search(world, wide, rows, replace(options, action_nucleus=share), keys=keys).codes[:, 0, 0, 2]
    assert set(nucleus.tolist()) == set(falling.indices[:3].tolist())


def test_a_goal_may_leave_columns_free() -> None:
    world, contexts, options = narrow(sample=False)
    goal = torch.full((6, 2), torch.nan, dtype=torch.float64)
    plan = beam_search(world, contexts, torch.full((6,), 2), options, objective="goal", goal=goal)
    imagined = plan.scores[:, 0] > -torch.inf
    assert torch.equal(plan.scores[imagined, 0], torch.zeros(int(imagined.sum()), dtype=torch.float64))


def test_contradictory_requests_are_refused_by_name() -> None:
    world, contexts, options = narrow()
    rows = torch.full((6,), 2)
    with pytest.raises(ValueError, match="objective 'goal' needs a goal"):
        beam_search(world, contexts, rows, options, objective="goal", keys=rows)
    with pytest.raises(ValueError, match="objective 'return' takes no goal"):
        beam_search(world, contexts, rows, options, goal=torch.zeros(6, 2), keys=rows)
    with pytest.raises(ValueError, match="needs keys"):
        beam_search(world, contexts, rows, options)
    with pytest.raises(ValueError, match="plan_every: found 7, expected at most the horizon, 5"):
        SearchOptions(plan_every=7)
    with pytest.raises(ValueError, match="beams: found 0, expected at least 1"):
        SearchOptions(beams=0)
    with pytest.raises(ValueError, match=r"action_nucleus: found 1\.5, expected a share"):
        SearchOptions(action_nucleus=1.5)
