// Shows the text that a node of this pack reports ({"ui": {"text": [...]}}) in a box on the node, after each run.
// ComfyUI itself does so for Preview as Text alone.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const NAME = "report";
const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

function reportBox(node) {
    const found = node.widgets?.find((widget) => widget.name === NAME);
    if (found) return found;
    const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
    widget.serialize = widget.options.serialize = false; // neither saved with the graph nor sent with the prompt
    widget.options.read_only = true;
    if (widget.element) widget.element.readOnly = true;
    return widget;
}

function show(node, text) {
    const isNew = !node.widgets?.some((widget) => widget.name === NAME);
    reportBox(node).value = text.join("\n\n");
    if (!isNew) return;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
    name: `${pack}.reports`,
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (nodeData.python_module !== `custom_nodes.${pack}`) return;
        const before = nodeType.prototype.onExecuted;
        nodeType.prototype.onExecuted = function (output) {
            before?.apply(this, arguments);
            if (output?.text?.length) show(this, output.text);
        };
    },
});
