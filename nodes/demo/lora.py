"""MirrorDemoLora: the embedded model, narrowed to one species."""

from comfy_api.latest import io

from ...demo import domains


class MirrorDemoLora(io.ComfyNode):
    """The demo model that knows one species as `animal`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorDemoLora",
            display_name="Mirror Demo LoRA",
            category="mirror/demo",
            description="Makes the demo model draw only cats, or only dogs, where the prompt says `animal`: two "
                        "models of two domains, to try translation between models without a download.",
            search_aliases=["demo lora", "two domains"],
            inputs=[
                io.Model.Input("model", tooltip="From Mirror Demo Model."),
                io.Combo.Input("species", options=list(domains.DOMAINS), default=domains.DOMAINS[1],
                               tooltip="What `animal` is to the model."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05,
                               tooltip="How far the model is changed: 0 not at all, 1 as it was trained."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, species, strength) -> io.NodeOutput:
        return io.NodeOutput(domains.only(model, species, strength))
