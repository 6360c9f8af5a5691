"""The names that users of `common` may rely on, and that each of them is documented."""

from __future__ import annotations

import ast
import importlib

import pytest

import common.handlers
import common.masks
from common.cam import LayerCAM
from common.pooling import SmoothMax
from common.radon import reconstruct
from tests.test_house import MODULES

PUBLIC = {
    "cam": """
        CAM BaseCAM GradCAM GradCAMpp GradientCAM HiResCAM LayerCAM PaddedSlices ScoreCAM SliceLogit SmoothGradCAMpp
        View XGradCAM default_layer grad_cam guided_backpropagation normalize_maps occlusion_map upsample_maps
        whole_slices
    """,
    "data": """
        SECTIONS BagSampler CacheEntry Case SliceDataset VolumeCache case_label cases check_patients find_cases
        in_turns kinds_of_patients label_counts label_of labels_in_words labels_of labels_slices load_datalist
        make_datalist matched_sampler matched_weights multi_hot patient_folds patient_of pseudo_masks read_unmasked runs
        slice_classes slice_labels slice_sampler split_patients stratified_split stratified_weights true_masks
        write_datalist
    """,
    "datasets": """
        ADAPTERS Adapter autopet bracs brats2020 camelyon16 cheng clinic_case decathlon duke folder half_lungs halves
        kaggle_3m labeled_table mosmed phantom_case read_cases substacks write_phantom
    """,
    "encoders": "Classifier EfficientNetLite Encoder TokenGrid encoder",
    "engines": """
        CaseDataset CaseEvaluator SliceMapInferer cause check_settings gathered gathered_rows raise_together
        running_config weighted_sampler
    """,
    "features": """
        Entry EntryLocked FeatureStore bag_of case_files encode encode_batches extract file_key find volume_entry
    """,
    "images": """
        LPS_TO_RAS DicomCodes Volume as_array axial check_affine check_one_grid corners dicom_results file_of
        filled_slices in_axes_of is_dicom is_picture like_image mask_on_grid meta_tensor nifti_affine on_grid read_grid
        read_labels read_mask read_picture read_volume spacing_of tensor_bytes window_pads write_dicom
        write_heat_picture write_mask_picture write_nifti write_raw_picture
    """,
    "handlers": """
        MASK_COLOR TRUTH_COLOR BagAUC Calibration CaseHandler CaseScores CaseWriter ClassScores Explanations
        LabelCalibration LabelScores MeanAUC MedianLoss Panel PredictionWriter Tracker ValidationMontages VolumeScores
        draw_montage iterate_cases position_prior with_colorbar
    """,
    "masks": """
        NO_EVIDENCE OF_LUNGS BaselineMasksd MapsToMaskd Thresholds best_threshold choose_gate clean each_slice
        fit_baselines gate_slices healthy_intensity heat_threshold hottest_component in_multiples intensity_grid
        largest_component least_voxels multi_otsu otsu pseudo_refine reached_level refine_by_intensity refine_options
        smallest_volume smooth_along_slices smooth_in_organ smooth_in_plane threshold_grid volume_gate volume_ml
        without_thin
    """,
    "metrics": """
        area_under balanced_accuracy bootstrap_by_patient bootstrap_interval class_scores classification_scores
        component_scores dice dice_from_counts healthy_false_positive_rate heat_outside iou iou_from_counts max_iou
        miou_from_counts paper_dsc patient_accuracy perturbation_curve points_at pooled_miou rank_correlation roc_auc
        slice_dice summarize top_region voxel_counts
    """,
    "report": "Report TrainingReport build_report find_files get_viewer write_report",
    "preprocessing": """
        ORGANS CheckSeend LoadCased NormalizeByOrgand OrganMaskd SeenWriter SpacingByAxesd brain_mask check_image
        head_mask learned_lung_mask lung_mask normalize_by_median normalize_by_mode organ_mask read_seen supervision_of
        within_window
    """,
    "radon": """
        MapReconstruction by_azimuth directions extreme_points half_diagonal oblique_slices paper_geometry
        plane_basis plane_integrals plane_offsets planes_through reconstruct reconstruct_maps sample_planes
        solid_angles
    """,
}


def test_every_room_of_common_is_listed():
    packages = {
        name.split(".")[1] for name, path in MODULES.items() if name.count(".") == 1 and path.stem == "__init__"
    }
    assert packages - {"commands"} == PUBLIC.keys()


@pytest.mark.parametrize("room", PUBLIC)
def test_a_room_exports_these_names_and_no_others(room):
    assert importlib.import_module(f"common.{room}").__all__ == PUBLIC[room].split()


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_has_a_docstring(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree)
    kinds = (ast.ClassDef, ast.FunctionDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_names_are_found_where_one_looks_for_them():
    assert issubclass(LayerCAM, common.cam.BaseCAM)
    assert SmoothMax.__module__ == "common.pooling"
    assert reconstruct.__module__ == "common.radon.reconstruction"
    assert common.handlers.CaseScores.__module__ == "common.handlers.case_scores"
    assert common.masks.MapsToMaskd.__module__ == "common.masks.transforms"
