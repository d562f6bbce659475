"""Properties of taps, over random choices of hook points, heads, parts and positions."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(data=st.data(), training=st.booleans())
def test_reading_any_set_of_points_changes_nothing(case, data, training):
    case.decoder.train(training)
    names = data.draw(st.lists(st.sampled_from(case.exact_names), min_size=1, unique=True))
    output, cache = case.cache(names)
    assert case.same(output, case.bare())
    assert set(cache) == set(names)
    assert case.clean()


@quick
@given(data=st.data(), scale=st.floats(-3, 3), training=st.booleans())
def test_editing_any_head_is_editing_it_by_hand(case, data, scale, training):
    case.decoder.train(training)
    heads = [n for n in case.exact_names if case.hooked.sites[n].n_heads]
    name = data.draw(st.sampled_from(heads))
    head, position = data.draw(st.tuples(st.integers(0, 1), st.integers(0, 5)))

    def edit(x):
        x = x.clone()
        x[:, position, head] *= scale
        return x

    truth = case.truth(lambda n, x: edit(x) if n == name else x)
    assert case.same(case.run(fwd_hooks=[(name, lambda x, hook: edit(x))]), truth)


@quick
@given(data=st.data(), training=st.booleans())
def test_any_set_of_edits_is_the_same_edits_by_hand(case, data, training):
    case.decoder.train(training)
    names = data.draw(
        st.lists(st.sampled_from(case.exact_names), min_size=1, max_size=8, unique=True)
    )
    scales = {n: data.draw(st.sampled_from([-1.0, 0.0, 0.5, 2.0])) for n in names}
    read = data.draw(st.lists(st.sampled_from(case.exact_names), min_size=1, unique=True))
    held = {}

    def at(name, x):
        held[name] = x * scales[name] if name in scales else x
        return held[name]

    truth = case.truth(at)
    hooks = [(n, lambda x, hook: x * scales[hook.name]) for n in names]
    with case.hooked.hooks(fwd_hooks=hooks):
        output, cache = case.cache(read)
    assert case.same(output, truth)
    assert all(torch.equal(cache[n], held[n]) for n in read)


@quick
@given(data=st.data())
def test_an_edit_shows_downstream_only(case, data):
    """Points that fire before the edited one hold what they held."""
    order = []
    case.run(fwd_hooks=[(n, lambda x, hook: order.append(hook.name)) for n in case.exact_names])
    place = data.draw(st.integers(0, len(order) - 1))
    _, bare = case.cache(order)
    with case.hooked.hooks(fwd_hooks=[(order[place], lambda x, hook: x + 1)]):
        _, cache = case.cache(order)
    assert all(torch.equal(cache[n], bare[n]) for n in order[:place])
    assert torch.equal(cache[order[place]], bare[order[place]] + 1)
