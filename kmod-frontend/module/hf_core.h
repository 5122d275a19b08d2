/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Rust core, as C sees it: the same declarations as kmod-frontend/core/src/ffi.rs. No function here sleeps, allocates or
 * fails by crashing; each takes any bytes.
 */
#ifndef HF_CORE_H
#define HF_CORE_H

#include <linux/types.h>

#define HF_SENSE_LEN_MAX 64
#define HF_TRANSPORT_ID_LEN_MAX 248

struct hf_core_nexus;
struct hf_core_ua;

enum hf_answer {
	HF_ANSWER_STATUS,
	HF_ANSWER_DATA,
	HF_ANSWER_MORE_ROOM,
	HF_ANSWER_READ,
	HF_ANSWER_WRITE,
	HF_ANSWER_FLUSH,
	HF_ANSWER_ZEROES,
	HF_ANSWER_ASK,
};

#define HF_WRITE_DURABLE 1

struct hf_command {
	const u8 *cdb;
	u32 cdb_len;
	u32 relation;
	const struct hf_core_nexus *nexus;
	struct hf_core_ua *attentions;
	u8 *out;
	u32 out_len;
	u32 answer;
	u8 status;
	u8 sense_len;
	u8 flags;
	u8 reserved;
	u32 len;
	u64 lba;
	u8 sense[HF_SENSE_LEN_MAX];
};

struct hf_image_facts {
	u64 version;
	u64 epoch_number;
	u32 epoch_generation;
	u32 block_size;
	u64 blocks;
	u32 registrants;
	u32 reserved;
};

size_t hf_core_image_size(const u8 *message, size_t len);
u32 hf_core_image_build(const u8 *message, size_t len, u8 *memory, size_t size);
u32 hf_core_image_facts(const u8 *memory, const u8 *message, size_t len, struct hf_image_facts *facts);

size_t hf_core_nexus_size(void);
u32 hf_core_nexus(struct hf_core_nexus *memory, u32 protocol, const u8 *name, size_t name_len, const u8 *isid,
		  u16 relative_port);
u32 hf_core_nexus_parse(struct hf_core_nexus *memory, const u8 *transport_id, size_t len, u16 relative_port);
u32 hf_core_nexus_same(const struct hf_core_nexus *a, const struct hf_core_nexus *b);
size_t hf_core_nexus_name(const struct hf_core_nexus *nexus, u8 *out, size_t room);
u32 hf_core_relation(const u8 *memory, u32 registrants, const struct hf_core_nexus *nexus);

size_t hf_core_ua_size(void);
void hf_core_ua_init(struct hf_core_ua *queue);
void hf_core_ua_raise(struct hf_core_ua *queue, u64 id, u16 additional);
size_t hf_core_ua_len(const struct hf_core_ua *queue);
void hf_core_ua_luns_reported(struct hf_core_ua *queue);

void hf_core_execute(const u8 *memory, u32 registrants, struct hf_command *command);
u8 hf_core_io_error(u32 write, u8 *out);

#endif
