// NiiVue in the page: scan, heat levels, edges of mask and truth, made from the page's own data.

const VIEWS = [["planes and 3D", "multi"], ["axial", "axial"], ["coronal", "coronal"], ["sagittal", "sagittal"], ["3D", "render"]];
const TINTS = { mask: [0, 229, 255], truth: [255, 176, 0] }; // cyan and amber: told apart by every kind of color vision

// Why no volume can be shown; empty where one can.
function obstacle(row) {
  if (!row.volumes) return row.table ? "" : "This case is shown as a picture: only the cases at the top of the list carry their volumes, or the scan was not found.";
  if (report.viewer === null) return `NiiVue, the viewer, was not at hand when this page was made. Run ${report.viewer_command} once, then make the report anew.`;
  if (!document.createElement("canvas").getContext("webgl2")) return "This browser offers no WebGL2, which the viewer needs; the picture shows the same case.";
  return "";
}

function tint([r, g, b]) {
  return { R: [0, r], G: [0, g], B: [0, b], A: [0, 255], I: [0, 255] };
}

// The upper part of inferno, whose lower part is as dark as the scan.
const HEAT = { R: [0, 106, 163, 215, 246, 250, 252], G: [0, 23, 44, 75, 128, 196, 255], B: [0, 110, 97, 63, 19, 42, 164], A: [0, 255, 255, 255, 255, 255, 255], I: [0, 1, 51, 102, 153, 204, 255] };

// One viewer and one canvas for the page: a browser has few WebGL contexts.
let viewer = null;
const canvas = make("canvas", { id: "canvas", tabindex: "0", role: "img" });
const screen = make("div", { class: "screen" }, canvas);

async function startViewer() {
  const made = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.6, crosshairWidthUnit: "mm", show3Dcrosshair: true, isNearestInterpolation: true,
    isColorbar: false, isRadiologicalConvention: true, dragAndDropEnabled: false, multiplanarShowRender: 1, multiplanarPadPixels: 4,
    isOrientCube: false, loadingText: "", logLevel: "error", isResizeCanvas: true,
  });
  await made.attachToCanvas(canvas);
  for (const [name, color] of Object.entries(TINTS)) made.addColormap(`edge of ${name}`, tint(color));
  made.addColormap("heat", HEAT);
  return made;
}

async function showVolumes(row) {
  const { volumes } = row;
  while (viewer.volumes.length) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
  const add = async (name, colormap, opacity, low, high) => {
    if (!volumes[name]) return;
    const volume = await niivue.NVImage.new(bytesOf(volumes[name]).buffer, `${name}.nii.gz`, colormap, opacity, null, low, high);
    if (name === "heat") volume.colormapType = 2; // colors count from 0, what is below the threshold is clear
    viewer.addVolume(volume);
  };
  await add("image", "gray", 1, 0, 255);
  await add("heat", "heat", 0.6, 0.5, 255);
  await add("mask", "edge of mask", 1, 0.5, 1);
  await add("truth", "edge of truth", 1, 0.5, 1);
  viewer.setClipPlane([2, 0, 0]);
  viewer.setRenderAzimuthElevation(120, 12);
}

function volumeIndex(name) {
  return viewer ? viewer.volumes.findIndex((volume) => volume.name.startsWith(name)) : -1;
}

function setOpacity(name, opacity) {
  const index = volumeIndex(name);
  if (index >= 0) viewer.setOpacity(index, opacity);
}

// Shows the heat above a stop: its levels from stop + 1 on.
function setStop(stop) {
  const index = volumeIndex("heat");
  if (index < 0) return;
  viewer.volumes[index].cal_min = stop + 0.5;
  viewer.volumes[index].cal_max = 255;
  viewer.updateGLVolume();
}

function setView(name) {
  if (!viewer) return;
  const kinds = { multi: viewer.sliceTypeMultiplanar, axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal, render: viewer.sliceTypeRender };
  viewer.setSliceType(kinds[name]);
}

// Up or down the slices of the view that is shown.
function step(view, count) {
  if (!viewer || !viewer.volumes.length) return;
  const along = { coronal: [0, count, 0], sagittal: [count, 0, 0] }[view] || [0, 0, count];
  viewer.moveCrosshairInVox(...along);
}

// The middle of the slice that holds most of the mask, or of the heat: where one wants to look first.
function lookAt(millimeters) {
  viewer.scene.crosshairPos = viewer.mm2frac(millimeters, 0, true);
  viewer.drawScene();
}
