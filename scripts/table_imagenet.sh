#!/bin/sh
# ImageNet: plain students and every method with a published recipe, for the two pairs of the papers. The teachers are
# torchvision's weights, which it downloads; the data are in the folder that KD_DATA names. EKD's priors were learned by
# evidential teachers of its authors, which these are not. WKD projects maps by one convolution, as on CIFAR-100, where
# its authors have three; rho and T of its two parts together were not published for ImageNet.
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

# imagenet "512|256|128" PAIR FLAGS...: one student by the recipe of that batch size, 100 epochs
imagenet() {
    case $1 in
        512) recipe="--batch_size 512 --learning_rate 0.2" ;;
        256) recipe="--batch_size 256 --learning_rate 0.1" ;;
        128) recipe="--batch_size 128 --learning_rate 0.05" ;;
    esac
    pair=$2
    shift 2
    # shellcheck disable=SC2086  # a list of flags
    distill_from "torchvision:$(echo "${pair%:*}" | sed 's/imagenet_ResNet/resnet/')" "${pair%:*}" "${pair#*:}" \
        --dataset imagenet $recipe "$@"
}

plain "imagenet_ResNet18 imagenet_MobileNetV1" --dataset imagenet "$@"

for pair in imagenet_ResNet34:imagenet_ResNet18 imagenet_ResNet50:imagenet_MobileNetV1; do
    imagenet 512 $pair --distill kd -r 0.5 -a 0.5 --kd_T 1 "$@"
    imagenet 512 $pair --distill kd -r 0.5 -a 0.5 --kd_T 1 --sort "$@"
    imagenet 512 $pair --distill kd -r 1 -a 9 --logit_stand --kd_T 2 "$@"
    imagenet 256 $pair --distill kd -r 1 -a 1 --curriculum_T --decay_loops 5 --epochs 120 "$@"
    imagenet 256 $pair --distill kd -r 0.5 -a 0.5 --kd_T 1 --optimizer dot --dot_delta 0.09 "$@"
    imagenet 512 $pair --distill attention -r 1 -a 0 -b 1000 "$@"
    imagenet 256 $pair --distill crd -r 1 -a 0 -b 0.8 "$@"
    imagenet 128 $pair --distill ofd -b 0.0001 "$@"
    imagenet 256 $pair --distill dist -r 1 -a 2 -b 2 --kd_T 1 "$@"
    imagenet 256 $pair --distill simkd -b 1 --epochs 120 "$@"
    imagenet 256 $pair --distill wsld -a 2.5 --kd_T 2 "$@"
done

pair=imagenet_ResNet34:imagenet_ResNet18
imagenet 512 $pair --distill dkd -r 1 -a 1 -b 0.5 --kd_T 1 --kd_warmup 1 "$@"
imagenet 512 $pair --distill dkd -r 1 -a 1 -b 0.5 --kd_T 1 --kd_warmup 1 --sort "$@"
imagenet 512 $pair --distill ekd -r 1 -a 1.0 -b 0.05 --ekd_prior -1.46 --ekd_warmup 1 "$@"
imagenet 512 $pair --distill mlkd -r 0.5 -a 0.5 --kd_T 1 --learning_rate 0.1 "$@"
imagenet 256 $pair --distill ReviewKD -b 1 --kd_warmup 1 "$@"
imagenet 256 $pair --distill wkd_l -a 1 -b 30 --kd_T 2 --decay_epoch 0 --decay_end 100 "$@"
imagenet 256 $pair --distill wkd_f -b 0.02 --decay_epoch 0 --decay_end 100 "$@"
imagenet 256 $pair --distill wkd -a 1 -b 1 --transport_weight 10 --kd_T 2 --rho 4 --decay_epoch 0 --decay_end 100 "$@"
imagenet 512 $pair --distill catkd -b 0.5 --cam_resolution 4 "$@"
# no hyperparameters were published for ImageNet: those of CIFAR-100
imagenet 512 $pair --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"

pair=imagenet_ResNet50:imagenet_MobileNetV1
imagenet 512 $pair --distill dkd -r 1 -a 1 -b 2 --kd_T 1 --kd_warmup 1 "$@"
imagenet 512 $pair --distill dkd -r 1 -a 1 -b 2 --kd_T 1 --kd_warmup 1 --sort "$@"
imagenet 512 $pair --distill ekd -r 1 -a 2.0 -b 0.1 --ekd_prior -1.73 --ekd_warmup 1 "$@"
imagenet 512 $pair --distill mlkd -r 0.5 -a 0.5 --kd_T 1 "$@"
imagenet 256 $pair --distill ReviewKD -b 8 --kd_warmup 1 "$@"
imagenet 256 $pair --distill wkd_l -a 1 -b 25 --kd_T 2 --kappa 2 --decay_epoch 0 --decay_end 100 "$@"
imagenet 256 $pair --distill wkd_f -b 0.005 --decay_epoch 0 --decay_end 100 "$@"
imagenet 256 $pair --distill wkd -a 1 -b 0.005 --transport_weight 25 --kd_T 2 --kappa 2 --rho 4 --decay_epoch 0 \
    --decay_end 100 "$@"
imagenet 512 $pair --distill catkd -b 10 --cam_resolution 2 --cam_normalize "$@"
imagenet 512 $pair --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"
