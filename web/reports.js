// Shows the text that a node of this pack reports ({"ui": {"text": [...]}}) in a box on the node, after each run.
// ComfyUI itself does so for Preview as Text alone.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const NAME = "report";
const HEIGHT = 120;
const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

function makeBox(node) {
    const [width, height] = node.size;
    const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
    widget.serialize = widget.options.serialize = false; // neither saved with the graph nor sent with the prompt
    widget.options.read_only = true;
    widget.options.getMinHeight = () => HEIGHT;
    if (widget.element) widget.element.readOnly = true;
    const [leastWidth, leastHeight] = node.computeSize();
    node.setSize([Math.max(width, leastWidth), Math.max(height, leastHeight)]); // adding a widget shrinks the node
    return widget;
}

function show(node, text) {
    const box = node.widgets?.find((widget) => widget.name === NAME) ?? makeBox(node);
    box.value = text.join("\n\n");
    node.setDirtyCanvas(true, true);
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
