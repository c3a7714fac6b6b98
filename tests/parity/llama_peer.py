"""Run by a Python that has llama_cpp: what llama.cpp makes of a GGUF file. Questions and answers are JSON."""

import json
import sys

import llama_cpp
import numpy as np

FLOAT32 = 0


def answer(question: dict) -> dict:
    """Logits after every id, the greedy continuation, and the ids of texts."""
    model = llama_cpp.Llama(
        question["file"],
        n_ctx=question["n_ctx"],
        n_threads=1,
        n_threads_batch=1,
        type_k=FLOAT32,
        type_v=FLOAT32,
        logits_all=True,
        verbose=False,
    )
    model.eval(question["ids"])
    logits = np.array(model.scores[: len(question["ids"])])
    greedy = []
    for _ in range(question["n_new"]):
        greedy.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(greedy[-1:])
    texts = [model.tokenize(text.encode(), add_bos=False, special=False) for text in question["texts"]]
    return {"logits": logits.tolist(), "greedy": greedy, "texts": texts}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        questions = json.load(file)
    with open(sys.argv[2], "w") as file:
        json.dump([answer(question) for question in questions], file)
