"""What plain transformers and PEFT, without fedmed, make of an example and of an adapter folder."""


def loaded_logits(model, folder, ids):
    """The logits of `ids` with the folder's adapter: every key has its place, none is left over, and they change."""
    import peft
    import torch

    with torch.no_grad():
        before = model(ids).logits
        loaded = peft.PeftModel.from_pretrained(model, folder)
        result = loaded.load_adapter(folder, adapter_name="again")
        after = loaded(ids).logits
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora" in key]
    assert (after - before).abs().max() > 1e-3
    return after


def answer_loss(model, tokenizer, plan, row):
    """The negative log-probability of the tokens of a row's answer, summed, and how many they are."""
    import torch

    messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": row["question"]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([(start + answer)[: plan.training.max_length]])
    with torch.no_grad():
        picked = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(start) - 1 :]
    return -float(picked.sum()), len(picked)
