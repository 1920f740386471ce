// Lists this pack's templates in their order: ComfyUI lists files as the disk happens to hold them.
import { api } from "../../scripts/api.js";

const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
const listed = api.getWorkflowTemplates.bind(api);

api.getWorkflowTemplates = async () => {
    const templates = await listed();
    templates[pack]?.sort();
    return templates;
};
