"""The causal transformer: one pass over T steps asks every step what a pass that ends there would."""

import torch

CAUSAL = {"causal": True, "action_history": True}


def test_every_step_is_asked_as_if_it_were_the_last(make_policy, make_batch):
    policy = make_policy(kind="transformer", context=4, network=CAUSAL)
    torch.nn.init.normal_(policy.network.body.distance)
    batch = make_batch(policy)
    batch["pad"][1, :2] = True
    pooled, state, past, pad = policy._context(
        policy.pool(batch["features"]), batch["proprio"], batch["past_actions"], batch["pad"]
    )
    every = policy.network.body(pooled, state, past, pad, True)  # (B, T, W)
    assert every.shape == (3, 4, 16)
    torch.testing.assert_close(every[:, -1], policy.network.body(pooled, state, past, pad))
    for last in range(
        4
    ):  # what stands after a step plays no part, and neither does how much room is before it
        seen, unknown = slice(0, last + 1), past[:, : last + 1].clone()
        unknown[:, -1] = 0
        alone = policy.network.body(pooled[:, seen], state[:, seen], unknown, pad[:, seen])
        rows = ~pad[:, last]
        torch.testing.assert_close(alone[rows], every[rows, last], atol=1e-5, rtol=1e-4)


def test_the_loss_of_every_step_is_that_of_each(make_policy, make_batch):
    policy = make_policy(kind="transformer", context=3, network=CAUSAL)
    batch = make_batch(policy)
    one, _ = policy.loss(batch)
    actions, pad = batch["actions"], batch["action_pad"]
    batch["actions"] = actions[:, None].expand(-1, 3, -1, -1).clone()
    batch["actions"][:, :2] = torch.nan
    batch["action_pad"] = pad[:, None].expand(-1, 3, -1).clone()
    batch["action_pad"][:, :2] = True
    torch.testing.assert_close(policy.loss(batch)[0], one)


def test_members_have_the_gradients_of_each_alone(make_policy, make_batch, alone):
    policy = make_policy(kind="transformer", context=3, network=CAUSAL, members=2).train()
    batch = make_batch(policy)
    policy.loss(batch)[0].backward()
    found = {name.replace("/", "."): value.grad for name, value in policy.named_parameters()}
    assert found["network.body.distance"].any()
    for member in range(2):
        single = alone(policy, member)
        single.loss(batch)[0].backward()
        for name, value in single.named_parameters():
            torch.testing.assert_close(2 * found[name][member], value.grad, atol=1e-5, rtol=1e-4)
