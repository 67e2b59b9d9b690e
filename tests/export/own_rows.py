"""Rows of user data that a model can learn from, and training on such rows."""

import json
import random

import torch
from attention_export.own_data import own_data
from attention_export.tasks.text import words
from attention_export.training import OnProgress, TrainedModel

FILLERS = words("the a of in it was and to is for on with as by at from")
GOOD, BAD = words("good great fine lovely"), words("bad poor awful dull")
TOPICS = {"film": words("movie actor scene"), "food": words("soup dish plate")}


def which_first(rng):
    """A text with a label that depends on the order of two words."""
    text = rng.choices(FILLERS, k=rng.randint(4, 9))
    first, second = rng.sample(["cat", "dog"], 2)
    at, after = sorted(rng.sample(range(len(text)), 2))
    text[at], text[after] = first, second
    return {"text": " ".join(text), "label": first}


def review(rng):
    """A text with two labels, each determined by one word."""
    good, topic = rng.random() < 0.5, rng.choice(list(TOPICS))
    text = [*rng.choices(FILLERS, k=rng.randint(2, 6)), rng.choice(GOOD if good else BAD), rng.choice(TOPICS[topic])]
    rng.shuffle(text)
    sentiment = "positive" if good else "negative"
    return {"text": " ".join(text).capitalize() + "!", "label": {"topic": topic, "sentiment": sentiment}}


def summed(rng):
    """A text with a label for each word; a number's label depends on "plus" anywhere in the text."""
    tokens = rng.choices([*FILLERS[:4], "one", "two", "three"], k=rng.randint(2, 6))
    if rng.random() < 0.5:
        tokens[rng.randrange(len(tokens))] = "plus"
    number = "term" if "plus" in tokens else "count"
    return {"tokens": tokens, "labels": [number if word in ("one", "two", "three") else "word" for word in tokens]}


def signal(rng):
    """Vectors with one marked vector; its sign is the label."""
    vectors = [[round(rng.gauss(0, 0.7), 3) for _ in range(5)] for _ in range(rng.randint(2, 7))]
    label = rng.choice(["up", "down"])
    rng.choice(vectors)[:2] = [4.0, 2.0 if label == "up" else -2.0]
    return {"vectors": vectors, "label": label}


def lookup(rng):
    """A question, and a memory with its answer."""
    names, places = rng.sample(words("ann bob cid eve fay"), 3), rng.choices(words("bonn lima oslo"), k=3)
    asked = rng.randrange(3)
    memory = [f"{name}={place}" for name, place in zip(names, places, strict=True)]
    return {"text": f"where is {names[asked]}", "memory_tokens": memory, "label": places[asked]}


def near(rng):
    """A vector, and two in memory; the label is the position of the equal one."""
    memory = [[rng.gauss(0, 1) for _ in range(4)] + [mark] for mark in (-1.0, 1.0)]
    index = rng.randrange(2)
    return {"vectors": [memory[index][:4]], "memory_vectors": memory, "label": ["first", "second"][index]}


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def generate(folder, make, count, seed=0):
    rng = random.Random(seed)
    return write(folder, [make(rng) for _ in range(count)])


def train(path, options, *, seed=0, checkpoint=None, on_progress: OnProgress = lambda _: None) -> TrainedModel:
    task = own_data(path, "mine", options, checkpoint)
    return task.train(seed, task.steps, on_progress)


def weights(trained):
    model = trained.model
    modules = [model.block, model.head, *([model.text.front] if model.text else [])]
    return [parameter for module in modules for parameter in module.parameters()]


def same(a, b):
    """Return whether two runs ended with the same bits."""
    pairs = zip(weights(a), weights(b), strict=True)
    return all(map(torch.equal, *zip(*pairs, strict=True))) and a.losses == b.losses
