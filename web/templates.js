// Lists this pack's templates in their order, and opens them in the view that they were saved with: ComfyUI lists files
// as the disk happens to hold them, and from 0.24 on it shows a template smaller than can be read.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
const ours = new Set();

const listed = api.getWorkflowTemplates.bind(api);
api.getWorkflowTemplates = async () => {
    const templates = await listed();
    templates[pack]?.sort().forEach((name) => ours.add(name));
    return templates;
};

const load = app.loadGraphData.bind(app);
app.loadGraphData = async (...given) => {
    const [graph, , , name, options] = given;
    const view = options?.openSource === "template" && ours.has(name) && structuredClone(graph.extra?.ds);
    const loaded = await load(...given);
    if (view) showAsSaved(view);
    return loaded;
};

function showAsSaved({ scale, offset }) {
    const { ds, canvas } = app.canvas;
    const corners = app.graph.nodes.map((node) => [0, 1].map((i) => (node.pos[i] + node.size[i] + offset[i]) * scale));
    const whole = corners.every(([right, bottom]) => right <= canvas.clientWidth && bottom <= canvas.clientHeight);
    if (scale <= ds.scale || !whole) return; // a screen of another size: ComfyUI's own view is the better one
    ds.scale = scale;
    ds.offset = offset;
    app.canvas.setDirty(true, true);
}
