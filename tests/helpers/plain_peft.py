"""What plain PEFT, without fedmed, makes of an adapter folder."""


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
