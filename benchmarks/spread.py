"""How far the outputs of torchvision's heads spread over the regions of an image, where weights are random.

By the names of the layers; also tests/detectors.py draws its weights so.
"""

SPREAD = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.4,
    "roi_heads.box_predictor.cls_score": 3.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 3.0,
    "roi_heads.keypoint_predictor.kps_score_lowres": 3.0,
}
