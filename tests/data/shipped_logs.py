"""Tiny logs in the official formats of those that are read by a mapping of the package."""

from pathlib import Path

CHINA = 8 * 3600


def seconds(day: int, hour: float, *, month_start: int) -> int:
    """A moment by the clock of China; `month_start` is midnight in UTC."""
    return month_start + (day - 1) * 86_400 + round(hour * 3600) - CHINA


NOVEMBER = 1_509_494_400  # 2017-11-01 00:00 UTC
DECEMBER = 1_512_086_400
MAY_2017 = 1_493_596_800
APRIL_2022 = 1_648_771_200
MAY_2022 = 1_651_363_200


def write_taobao(folder: Path) -> None:
    """UserBehavior.csv: no header, users one after the other, some times out of the window."""
    lines = []
    for user in (1, 2, 3):
        for number, (day, hour) in enumerate([(2, 9.0), (2, 10 + user), (3, 9.0)]):
            time = seconds(day, hour, month_start=DECEMBER)
            item = (user + number) % 4
            lines.append(f"{user},{10 + item},{item % 2},pv,{time}")
        lines.append(f"{user},10,0,buy,{seconds(26, 12, month_start=NOVEMBER)}")
        lines.append(f"{user},{10 + user},{user % 2},pv,{seconds(25, user, month_start=NOVEMBER)}")
    lines.append("3,11,1,pv,-1218231600")
    lines.append("3,11,1,pv,1505118599")
    folder.mkdir(parents=True)
    (folder / "UserBehavior.csv").write_text("\n".join(lines) + "\n")


def write_alimama(folder: Path) -> None:
    """Four files: NULL with and without a blank, a header with a blank, users without a profile."""
    folder.mkdir(parents=True)
    first, second = (seconds(d, 10, month_start=MAY_2017) for d in (12, 13))
    (folder / "raw_sample.csv").write_text(
        "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
        f"7,{first},1,430548_1007,1,0\n"
        f"7,{first},2,430548_1007,0,1\n"
        f"8,{second},1,430539_1007,1,0\n"
        f"7,{second},2,430548_1007,1,0\n"
        f"7,{second},1,430548_1007,0,1\n"
    )
    (folder / "ad_feature.csv").write_text(
        "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
        "1,5,11,21,NULL,170.0\n2,6,12,22, NULL,9.99\n3,6,12,22,31,9.99\n"
    )
    (folder / "user_profile.csv").write_text(
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level \n"
        "7,0,5,2,5,,3,0,2\n"
    )
    (folder / "behavior_log.csv").write_text(
        "user,time_stamp,btag,cate,brand\n"
        f"7,{first - 60},pv,5,31\n"
        f"7,{first - 50},buy,6,NULL\n"
        f"8,{second - 60},pv,5,31\n"
        "8,1,pv,5,31\n"
    )


def write_movielens(folder: Path) -> None:
    """ratings.csv and movies.csv: half stars, quoted titles, a film without a genre."""
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        "1,10,4.0,1000000000\n1,11,3.5,1000000000\n"
        "2,10,5.0,1100000000\n2,12,0.5,1100000000\n1,12,4.5,1200000000\n1,11,1.0,1200000000\n"
    )
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,"American President, The (1995)",Comedy|Drama|Romance\n'
        "11,Heat (1995),Action\n12,Pel\xedcula (2001),(no genres listed)\n"
    )


def write_movielens_1m(folder: Path) -> None:
    """Three .dat files: two colons between cells, no header, titles in Latin-1 with colons."""
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text(
        "1::10::4::978300760\n1::11::3::978300760\n"
        "2::10::5::978400760\n2::12::1::978400760\n1::12::4::978500760\n1::11::2::978500760\n"
    )
    (folder / "movies.dat").write_bytes(
        '10::Mis\xe9rables, Les: "The" Film (1995)::Drama|Musical\n'
        "11::Heat (1995)::Action\n12::X (2000)::Horror\n".encode("latin-1")
    )
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")


_KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,"
    "is_rand,tab"
)


def write_kuairand(folder: Path) -> None:
    """Logs of two periods, random insertions that are not read, features with empty cells."""
    folder.mkdir(parents=True)
    april = 1000 * seconds(20, 21.5, month_start=APRIL_2022)
    may = 1000 * seconds(8, 4, month_start=MAY_2022)

    def row(user: int, video: int, time: int, click: int, tab: int, rand: int = 0) -> str:
        return (
            f"{user},{video},20220508,400,{time},{click},0,0,0,0,0,0,{click * 900},12000,0,0,0,"
            f"{rand},{tab}"
        )

    periods = {
        "log_standard_4_08_to_4_21_pure": [row(0, 5, april, 1, 1), row(0, 6, april, 0, 1)],
        "log_standard_4_22_to_5_08_pure": [row(0, 6, may, 1, 4), row(0, 5, may, 0, 4)],
        "log_random_4_22_to_5_08_pure": [row(0, 5, may + 9, 1, 4, 1)],
    }
    for name, rows in periods.items():
        (folder / f"{name}.csv").write_text("\n".join([_KUAIRAND_LOG, *rows]) + "\n")
    (folder / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
        "server_width,server_height,music_id,music_type,tag\n"
        '5,91,NORMAL,2022-04-01,LongImport,1.0,12000.0,720,1280,33,9.0,"12,65"\n'
        "6,92,NORMAL,2022-04-01,ShortImport,1.0,,720,1280,34,,\n"
    )
    (folder / "user_features_pure.csv").write_text(
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
        "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
        "friend_user_num_range,register_days,register_days_range,onehot_feat0,onehot_feat4\n"
        '0,high_active,0,0,0,5,"(0,10]",0,0,0,0,107,61-90,0,\n'
    )
