#!/usr/bin/env python3
"""Makes the reference values of the native evaluator's parity tests with PyTorch and transformers.

  make_reference.py          (from the repository's root; needs torch, transformers, safetensors, numpy)

writes, beside this file:
  answers.json     greedy answers of evals/tiny-llama's base and experts, every sample, and verdicts of the sweep's runs
  likelihood.json  log-likelihoods of multiple-choice and perplexity samples under evals/tiny-llama/base
  <family>/        tiny random checkpoints of other architectures, with logits.json and greedy continuations
It is not needed to run the tests.
"""
import collections, json, math, os, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
ZOO = os.path.join(HERE, "..", "..", "..", "evals", "tiny-llama")
MAX_NEW = 12
torch.set_num_threads(1)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model, tok, prompts, max_new, eos):
    """Decoded texts; None where the answer was cut."""
    groups, out = collections.defaultdict(list), [None] * len(prompts)
    for i, p in enumerate(prompts):
        ids = tok(p)["input_ids"]
        groups[len(ids)].append((i, ids))
    for _, g in sorted(groups.items()):
        x, past = torch.tensor([ids for _, ids in g]), None
        toks, done = [[] for _ in g], [False] * len(g)
        for _ in range(max_new):
            o = model(input_ids=x, past_key_values=past, use_cache=True)
            past, nxt = o.past_key_values, o.logits[:, -1].argmax(-1)
            for j, t in enumerate(nxt.tolist()):
                if not done[j]:
                    if t == eos:
                        done[j] = True
                    else:
                        toks[j].append(t)
            if all(done):
                break
            x = nxt[:, None]
        for (i, _), t, d in zip(g, toks, done):
            out[i] = tok.decode(t, skip_special_tokens=False) if d else None
    return out


def answers():
    tok = AutoTokenizer.from_pretrained(os.path.join(ZOO, "base"))
    rows = {}
    for t in ["add", "cnt", "rev", "sort"]:
        for s in ["val", "test"]:
            rows[f"{t}.{s}"] = [json.loads(l) for l in open(os.path.join(ZOO, "data", f"{t}.{s}.jsonl"))]
    out = {"answers": {}, "verdicts": {}}
    for m in ["base", "expert-add", "expert-rev", "expert-sort", "expert-cnt"] + [f"sweep/run-{i:02}" for i in range(12)]:
        model = load(os.path.join(ZOO, m))
        got = {k: greedy(model, tok, [r["prompt"] for r in v], MAX_NEW, tok.eos_token_id) for k, v in rows.items()}
        ok = {k: "".join("01"[a == r["answer"]] for a, r in zip(got[k], v)) for k, v in rows.items()}
        print(m, {k: v.count("1") / len(v) for k, v in ok.items()}, file=sys.stderr)
        if m.startswith("sweep"):
            out["verdicts"][m] = ok
        else:
            out["answers"][m] = got
    text = json.dumps(out, separators=(",", ":")).replace("},", "},\n").replace("],", "],\n")
    open(os.path.join(HERE, "answers.json"), "w").write(text + "\n")


CHOICES = [
    {"prompt": "rev: ivpqx=", "choices": ["xqpvi", "ivpqx", "xqvpi", "pqxvi"], "gold": 0},
    {"prompt": "sort: rwok=", "choices": ["korw", "rwok", "kor", "orkw!"], "gold": 0},
    {"prompt": "add: 27+34=", "choices": ["60", "61", "5", "613"], "gold": 1},
    {"prompt": "cnt: kaaaat,t=", "choices": ["0", "1", "2", "33", "4", "5"], "gold": 1},
    {"prompt": "add: 55+39= ", "choices": ["94", "9", "49 94"], "gold": 0},
    {"prompt": "", "choices": ["add: 1", "rev: a", "zz"], "gold": 0},
]
TEXTS = [
    "add: 27+34=61",
    "rev: petra=artep",
    "sort: xqmhp=hmpqx, cnt: kaaaat,t=1 and the rest of a text that is longer than the context of 64 tokens, so that it is cut",
    "é!",
]


@torch.inference_mode()
def loglikelihood(model, context, continuation):
    """Sum of the continuation's log-probabilities in float64, from float32 logits. The last token is not an input."""
    lp = model(input_ids=torch.tensor([(context + continuation)[:-1]])).logits[0].double().log_softmax(-1)
    return sum(lp[len(context) + i - 1, t].item() for i, t in enumerate(continuation))


def likelihood():
    """The harness's rules: spaces that end the context move to the continuation; the continuation's tokens are what the
    whole has beyond the context; an empty context is the beginning-of-text token; rolling windows share one token."""
    folder = os.path.join(ZOO, "base")
    tok, model = AutoTokenizer.from_pretrained(folder), load(folder)
    out = {"choices": [], "texts": []}
    for c in CHOICES:
        lls = []
        for choice in c["choices"]:
            context, continuation = c["prompt"], choice
            n = len(context) - len(context.rstrip())
            if n:
                context, continuation = context[:-n], context[-n:] + continuation
            whole, ctx = tok(context + continuation)["input_ids"], tok(context)["input_ids"]
            lls.append(loglikelihood(model, ctx, whole[len(ctx):]))
        out["choices"].append({**c, "loglikelihoods": lls})
    limit = model.config.max_position_embeddings
    for text in TEXTS:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        total, at = 0.0, 0
        while at < len(ids):
            end = min(len(ids), at + limit)
            context = ids[max(0, end - limit - 1):at] if at else [tok.bos_token_id]
            total += loglikelihood(model, context, ids[at:end])
            at = end
        out["texts"].append({"text": text, "loglikelihood": total, "bytes": len(text.encode()),
                             "bits_per_byte": -total / math.log(2) / len(text.encode())})
    json.dump(out, open(os.path.join(HERE, "likelihood.json"), "w"), indent=1, ensure_ascii=False)


FAMILIES = {
    "llama-tied-rope3": dict(model_type="llama", tie_word_embeddings=True, head_dim=12, num_key_value_heads=1,
                             rope_parameters=dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0,
                                                  high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama-bias-linear": dict(model_type="llama", attention_bias=True, mlp_bias=True, num_key_value_heads=4,
                              rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)),
    "mistral-sliding": dict(model_type="mistral", num_key_value_heads=2, sliding_window=5, head_dim=8,
                            rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-6,
                  rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "qwen3": dict(model_type="qwen3", num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
                  rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
}


@torch.inference_mode()
def families():
    tok = AutoTokenizer.from_pretrained(os.path.join(ZOO, "base"))
    prompts = ["a", "add: 27+34=", "sort: xtawlf=", "a longer prompt, to go past a window"]
    for name, extra in FAMILIES.items():
        torch.manual_seed(len(name))
        config = AutoConfig.for_model(**dict(
            dict(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5), **extra))
        model = AutoModelForCausalLM.from_config(config).eval()
        for n, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.25 if "norm" in n else 0.3) + (1.0 if "norm" in n else 0.0))
        folder = os.path.join(HERE, name)
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB" if name == "qwen2" else "5GB")
        model = load(folder)
        cases = []
        for p in prompts:
            ids = tok(p)["input_ids"]
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            x, more = torch.tensor([ids]), []
            for _ in range(8):
                nxt = model(input_ids=x, use_cache=False).logits[0, -1].argmax().item()
                more.append(nxt)
                x = torch.cat([x, torch.tensor([[nxt]])], 1)
            keep = sorted({0, len(ids) // 2, len(ids) - 1})
            cases.append({"ids": ids, "positions": keep, "logits": [[round(v, 6) for v in logits[i].tolist()] for i in keep],
                          "greedy": more})
        json.dump(cases, open(os.path.join(folder, "logits.json"), "w"), separators=(",", ":"))


if __name__ == "__main__":
    families()
    likelihood()
    answers()
