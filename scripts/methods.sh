# Sourced after common.sh: every method with its published weights on CIFAR-100, but for EKD, whose teachers are
# evidential ones (run_cifar_ekd.sh). The weights that depend on the pair are those of the authors' configurations;
# where these lack a pair, the one of resnet32x4 -> resnet8x4 is taken. MLKD's authors took 480 epochs for some pairs of
# different architectures, which are not named.
# shellcheck shell=sh

# weights_of METHOD TEACHER:STUDENT: the flags that depend on the pair
weights_of() {
    case $1:$2 in
        dkd:resnet56:resnet20 | dkd:resnet110:*) echo "-r 1 -a 1 -b 2" ;;
        dkd:vgg13:* | dkd:wrn_40_2:wrn_*) echo "-r 1 -a 1 -b 6" ;;
        dkd:*) echo "-r 1 -a 1 -b 8" ;;
        ReviewKD:resnet56:resnet20) echo "-b 0.6" ;;
        ReviewKD:resnet110:resnet32) echo "-b 1" ;;
        ReviewKD:*:ShuffleV2) echo "-b 8" ;;
        ReviewKD:*) echo "-b 5" ;;
        catkd:resnet56:resnet20) echo "-b 0.7" ;;
        catkd:resnet110:resnet32) echo "-b 1.8" ;;
        catkd:vgg13:vgg8) echo "-b 4.5" ;;
        catkd:wrn_40_2:wrn_16_2) echo "-b 12" ;;
        catkd:wrn_40_2:wrn_40_1) echo "-b 1.5" ;;
        catkd:resnet32x4:Shuffle*) echo "-b 600 --cam_resolution 4 --cam_normalize" ;;
        catkd:wrn_40_2:ShuffleV1) echo "-b 80 --cam_resolution 4 --cam_normalize" ;;
        catkd:ResNet50:MobileNetV2) echo "-b 40 --cam_normalize" ;;
        catkd:vgg13:MobileNetV2) echo "-b 15 --cam_normalize" ;;
        catkd:*) echo "-b 15" ;;
        wkd_l:wrn_40_2:ShuffleV1) echo "-b 200 --kd_T 6" ;;
        wkd_l:*) echo "-b 600" ;;
        wkd_f:wrn_40_2:ShuffleV1) echo "-b 0.3 --rho 3 --grid 4" ;;
        wkd_f:*) echo "-b 0.08" ;;
        wkd:wrn_40_2:ShuffleV1) echo "-b 0.5 --transport_weight 60 --rho 3 --grid 4 --kd_T 4" ;;
        wkd:*) echo "-b 0.08 --transport_weight 200 --rho 8" ;;
        factor:*:vgg8) echo "--init_learning_rate 0.05" ;;
        mlkd:resnet32x4:Shuffle*) echo "--learning_rate 0.01 --epochs 960" ;;
        mlkd:*:Shuffle* | mlkd:*:MobileNetV2) echo "--learning_rate 0.01 --epochs 480" ;;
        mlkd:*) echo "--learning_rate 0.025" ;;
    esac
}

# every_method TEACHER STUDENT FLAGS...
every_method() {
    # RepDistiller's lines
    distill "$@" --distill kd -r 0.1 -a 0.9 -b 0
    distill "$@" --distill hint -a 0 -b 100
    distill "$@" --distill attention -a 0 -b 1000
    distill "$@" --distill similarity -a 0 -b 3000
    distill "$@" --distill correlation -a 0 -b 0.02
    distill "$@" --distill vid -a 0 -b 1
    distill "$@" --distill rkd -a 0 -b 1
    distill "$@" --distill pkt -a 0 -b 30000
    distill "$@" --distill abound -a 0 -b 1
    # shellcheck disable=SC2046  # lists of flags
    distill "$@" --distill factor -a 0 -b 200 $(weights_of factor "$1:$2")
    # whose maps need equal numbers of channels
    case $1:$2 in
        resnet*:ShuffleV* | resnet*:wrn_* | wrn_40_2:wrn_40_1 | wrn_40_2:ShuffleV* | vgg13:MobileNetV2 | ResNet50:*) ;;
        *)
            distill "$@" --distill fsp -a 0 -b 50
            distill "$@" --distill kdsvd -b 1
            ;;
    esac
    distill "$@" --distill nst -a 0 -b 50
    distill "$@" --distill crd -a 0 -b 0.8
    beside=+kd
    distill "$@" --distill crd -a 1 -b 0.8
    beside=

    # LDRLD's line, whose weights were published for one pair, and the other baselines
    distill "$@" --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4
    distill "$@" --distill ofd -b 0.001
    # shellcheck disable=SC2046
    distill "$@" --distill ReviewKD $(weights_of ReviewKD "$1:$2")
    distill "$@" --distill wsld -a 2.25
    # shellcheck disable=SC2046
    distill "$@" --distill dkd $(weights_of dkd "$1:$2")
    distill "$@" --distill dist -a 2 -b 2
    # shellcheck disable=SC2046
    distill "$@" --distill mlkd -r 0.1 -a 0.9 $(weights_of mlkd "$1:$2")
    # shellcheck disable=SC2046
    distill "$@" --distill catkd $(weights_of catkd "$1:$2")
    distill "$@" --distill simkd -b 1
    distill "$@" --distill srrl -b 1
    # shellcheck disable=SC2046
    distill "$@" --distill wkd_l -a 1 $(weights_of wkd_l "$1:$2")
    # shellcheck disable=SC2046
    distill "$@" --distill wkd_f $(weights_of wkd_f "$1:$2")
    # shellcheck disable=SC2046
    distill "$@" --distill wkd -a 1 $(weights_of wkd "$1:$2")
    distill "$@" --distill kd -r 0.1 -a 0.9 --optimizer dot
}
