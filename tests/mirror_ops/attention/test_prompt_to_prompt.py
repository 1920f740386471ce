import pytest
import torch

from mirror_ops.attention.prompt_to_prompt import (
    Prompt,
    align,
    injected,
    local_blend,
    paired,
    refined,
    refinement,
    replaced,
    replacement,
    reweighting,
    schedule,
    self_attention_taken,
    token_mask,
    word_area,
    word_heat,
)

BEGIN, END = 900, 901


def prompt(text):
    """A toy tokenizer: "a-b" is one word of two tokens."""
    tokens, words = [BEGIN], []
    for word in text.split():
        pieces = [sum(ord(c) * 7**k for k, c in enumerate(piece)) for piece in word.split("-")]
        words.append((len(tokens), len(tokens) + len(pieces)))
        tokens += pieces
    return Prompt([*tokens, END], words)


def maps(*shape, seed=0):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(dim=-1)


TEXTS = ["a cat", "a photo of a white tabby-cat on grass", ""]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [77, 12])
def test_identical_prompts_change_nothing(text, length):
    source, target, m = prompt(text), prompt(text), maps(2, 16, length)
    assert torch.equal(replacement(source, target, length), torch.eye(length))
    assert torch.equal(replaced(m, replacement(source, target, length)), m)
    mapper, alpha = refinement(source, target, length)
    assert torch.equal(mapper, torch.arange(length)) and torch.equal(alpha, torch.ones(length))
    assert torch.equal(refined(m, maps(2, 16, length, seed=1), mapper, alpha), m)


def official_replacement(source, target, length):
    """The official mapper in one pass, as the paper's code defines it: after the last swapped word W[j, j] = 1."""
    swapped = [
        (range(*s), range(*t))
        for s, t in zip(source.words, target.words, strict=True)
        if source.tokens[slice(*s)] != target.tokens[slice(*t)]
    ]
    weights, i, j = torch.zeros(length, length), 0, 0
    while i < length and j < length:
        if swapped and swapped[0][0][0] == i:
            rows, columns = swapped.pop(0)
            if len(rows) == len(columns):
                weights[list(rows), list(columns)] = 1
            else:
                weights[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1 / len(columns)
            i, j = i + len(rows), j + len(columns)
        elif swapped:
            weights[i, j] = 1
            i, j = i + 1, j + 1
        else:
            weights[j, j] = 1
            i, j = i + 1, j + 1
    return weights


@pytest.mark.parametrize(
    "source, target",
    [("a cat on grass", "a dog on sand"), ("tabby-cat on grass", "guide-dog on grass"), ("a b-c d-e f", "a x d-e g")],
)
def test_replacement_is_the_official_one_up_to_the_last_swapped_word(source, target):
    source, target = prompt(source), prompt(target)
    ours, theirs = replacement(source, target, 20), official_replacement(source, target, 20)
    last = max(t[1] for s, t in zip(source.words, target.words, strict=True))
    assert torch.equal(ours[:, :last], theirs[:, :last])
    if len(source.tokens) == len(target.tokens):
        assert torch.equal(ours, theirs)


def test_replacement_by_a_word_of_more_tokens_moves_the_rest_along():
    source, target = prompt("a cat sits"), prompt("a tabby-kitten-cat sits")
    weights = replacement(source, target, 10)
    assert torch.equal(weights[2, 2:5], torch.full((3,), 1 / 3))
    assert weights[3, 5] == 1 and weights[4, 6] == 1  # "sits" and the end mark; the official code has W[j, j] here
    assert official_replacement(source, target, 10)[3, 5] == 0
    assert torch.equal(weights.sum(dim=1), torch.ones(10))
    m = maps(3, 16, 10)
    assert torch.allclose(replaced(m, weights).sum(dim=-1), torch.ones(3, 16, dtype=torch.float64))


def test_replacement_by_a_word_of_fewer_tokens():
    weights = replacement(prompt("a tabby-kitten sits"), prompt("a dog sits"), 10)
    assert weights[2, 2] == 1 and weights[3, 2] == 1 and weights[4, 3] == 1 and weights[5, 4] == 1
    assert torch.equal(weights.sum(dim=1), torch.ones(10))


def test_parity_is_the_official_mapper_throughout():
    cases = [("a cat sits", "a tabby-kitten-cat sits"), ("a b-c d-e f", "a x d-e g"), ("a cat", "a cat"),
             ("a tabby-cat on grass", "a dog on grass")]
    for source, target in ((prompt(s), prompt(t)) for s, t in cases):
        assert torch.equal(replacement(source, target, 12, parity=True), official_replacement(source, target, 12))


def test_a_run_of_words_in_place_of_another_is_one_swap():
    source, target = paired(prompt("a cat sits on grass"), prompt("a golden-ish retriever sits on grass"))
    assert [b - a for a, b in source.words] == [1] * 5 and [b - a for a, b in target.words] == [1, 3, 1, 1, 1]
    weights = replacement(source, target, 12)
    assert torch.equal(weights[2, 2:5], torch.full((3,), 1 / 3)) and weights[3, 5] == 1 and weights[6, 8] == 1
    same = prompt("a b"), prompt("c a")
    assert paired(*same) == same, "equally many words: by place"
    with pytest.raises(ValueError, match="Use refine"):
        paired(prompt("a cat"), prompt("a white cat"))


def test_prompts_that_fill_other_lengths():
    """A source of one chunk, a target of two."""
    source, target = prompt("a cat"), prompt("a dog")
    weights = replacement(source, target, 8, 12)
    assert weights.shape == (8, 12) and torch.equal(weights[:, :8], torch.eye(8)) and weights[:, 8:].sum() == 0
    assert torch.equal(replacement(source, target, 12, 8).sum(dim=1), torch.ones(12))
    mapper, alpha = refinement(source, target, 8, 12)
    assert alpha.tolist() == [1, 1, 0, 1] + [1] * 4 + [0] * 4 and mapper.max() == 7


def test_replacement_refuses_other_word_counts():
    with pytest.raises(ValueError, match="source has 2, the target 3"):
        replacement(prompt("a cat"), prompt("a white cat"))


def test_added_word_keeps_its_own_map_only_there():
    source, target = prompt("a cat on grass"), prompt("a very-white cat on grass")
    mapper, alpha = refinement(source, target, 12)
    assert alpha.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert mapper.tolist()[:2] == [0, 1] and mapper.tolist()[4:8] == [2, 3, 4, 5]
    assert mapper.tolist()[8:] == [8, 9, 10, 11]
    m_source, m_target = maps(2, 16, 12), maps(2, 16, 12, seed=1)
    m = refined(m_source, m_target, mapper, alpha)
    assert torch.equal(m[..., 2:4], m_target[..., 2:4]) and torch.equal(m[..., 4], m_source[..., 2])


def test_swapped_and_removed_words_in_refinement():
    _, alpha = refinement(prompt("a cat on grass"), prompt("a dog on grass"), 8)
    assert alpha.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    mapper, alpha = refinement(prompt("a very white cat"), prompt("a cat"), 8)
    assert alpha.tolist() == [1] * 8 and mapper.tolist()[:4] == [0, 1, 4, 5]


def test_alignment_is_a_longest_common_subsequence():
    """Gap 0, match 1, mismatch -1: no alignment pairs more equal tokens. Against brute force on short strings."""
    generator = torch.Generator().manual_seed(0)

    def longest(a, b):
        if not a or not b:
            return 0
        return longest(a[1:], b[1:]) + 1 if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    for _ in range(40):
        a, b = (torch.randint(0, 3, (6,), generator=generator).tolist() for _ in range(2))
        pairs = [(i, j) for j, i in enumerate(align(a, b)) if i is not None]
        assert len(pairs) == longest(a, b) and all(a[i] == b[j] for i, j in pairs)
        assert pairs == sorted(pairs) and len({i for i, _ in pairs}) == len(pairs)


def test_ties_go_to_a_gap_in_the_source_first():
    """"a" against "a a": walking from the end the second one is taken to be new, so the first is the pair."""
    assert align([1], [1, 1]) == [0, None]
    assert align([1, 1], [1]) == [0]


def test_reweighting_names_words_of_several_tokens():
    assert reweighting([([2, 3], 2.0), ([5], -0.5)], 8).tolist() == [1, 1, 2, 2, 1, -0.5, 1, 1]
    assert token_mask([2, 3, 5], 8).tolist() == [0, 0, 1, 1, 0, 1, 0, 0]


def test_schedule_is_the_official_table():
    """50 steps: 0.4 ends with step 19, 0.8 with step 39; a word's own window overrides its column."""
    assert schedule(50, (0.0, 0.4))[:, 0].sum() == 20 and schedule(50)[:, 76].sum() == 40
    assert schedule(50, (0.0, 1.0)).min() == 1 and schedule(50, (0.0, 0.0)).max() == 0
    alpha = schedule(50, (0.0, 0.8), [([2, 3], (0.2, 0.4))], 8)
    assert alpha[:, 2].nonzero().flatten().tolist() == list(range(10, 20)) and torch.equal(alpha[:, 2], alpha[:, 3])
    assert alpha[:, [0, 1, 4, 7]].sum(dim=0).tolist() == [40] * 4
    with pytest.raises(ValueError, match="window"):
        schedule(50, (0.5, 0.2))


def test_injection_follows_the_row():
    control, target = maps(2, 16, 8), maps(2, 16, 8, seed=1)
    alpha = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0.0])
    mixed = injected(control, target, alpha)
    assert torch.equal(mixed[..., [0, 2]], control[..., [0, 2]]) and torch.equal(mixed[..., 3:], target[..., 3:])


def test_self_attention_window_and_size():
    taken = [step for step in range(50) if self_attention_taken(step, 50, 0.6, 1024)]
    assert taken == list(range(30)) and not self_attention_taken(0, 50, 0.6, 4096)


@pytest.mark.parametrize("pool", [True, False])
def test_word_area_spelled_out(pool):
    m = maps(2, 5, 6, 4, 9)  # two pictures, five heads, 6 x 4, nine tokens
    tokens = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0.0]])
    area = word_area(word_heat(m.flatten(2, 3), tokens).unflatten(2, (6, 4)), (12, 8), 0.7, pool)
    assert area.shape == (2, 1, 12, 8)
    for b in range(2):
        heat = (m[b, ..., 2] + m[b, ..., 3]).mean(dim=0)
        wide = heat.clone()
        if pool:
            for y in range(6):
                for x in range(4):
                    wide[y, x] = heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
        for y in range(12):
            for x in range(8):
                assert area[b, 0, y, x] == (wide[y // 2, x // 2] / wide.max() > 0.7)


def test_local_blend_keeps_the_source_outside():
    source, edited = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:4, 2:4] = True
    assert torch.equal(local_blend(source, edited, mask), mask.float().expand(1, 4, 8, 8))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        refinement(prompt("a cat on grass"), prompt("a cat"), 5)
    with pytest.raises(ValueError, match="spans"):
        replacement(Prompt([BEGIN, 1, END], [(1, 1)]), Prompt([BEGIN, 1, END], [(1, 2)]))
