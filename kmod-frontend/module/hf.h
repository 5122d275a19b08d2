/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Holdfast's backend of LIO: what its parts share.
 *
 *   hf_lu.c       registration with LIO; logical units: configfs, image, gate
 *   hf_nexus.c    I_T nexuses of a logical unit, their Unit Attentions
 *   hf_command.c  a command from parse_cdb to completion
 *   hf_store.c    blocks: device, file, nothing
 *   hf_ask.c      commands that the data node answers
 *   hf_channel.c  /dev/holdfast, the data node's side
 *
 * Invariants: no I/O is submitted or answered unless the gate is open (lease on the boot-time clock, ownership, an image);
 * each command completes exactly once; nothing from the data node is trusted before it is checked; with the data node dead,
 * I/O goes on until the lease ends, and what has to be asked ends with BUSY.
 */
#ifndef HF_H
#define HF_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/uuid.h>
#include <linux/workqueue.h>
#include <target/target_core_base.h>
#include <target/target_core_backend.h>
#include <target/target_core_fabric.h>

#include "hf_core.h"
#include "hf_protocol.h"

/* One version of a logical unit's rules: read under RCU, replaced whole. Each I/O holds the one it was admitted under. */
struct hf_image {
	struct kref ref;
	struct rcu_head rcu;
	struct work_struct drained;
	struct hf_lu *lu;
	/* Counts images of this unit: names one in HFK_DRAINED and in caches. */
	u64 serial;
	struct hf_image_facts facts;
	u8 memory[] __aligned(8);
};

/* An I_T nexus of one logical unit. Lives until the unit is removed: its Unit Attentions outlive commands. */
struct hf_nexus {
	struct hlist_node node;
	/* As LIO names it; an entry is used only while this still fits the session. */
	const struct se_portal_group *tpg;
	u16 relative_port;
	char name[TRANSPORT_IQN_LEN];
	char isid[20];
	/* Of the image with this serial. */
	u64 relation_serial;
	u32 relation;
	spinlock_t lock;
	struct hf_core_ua *attentions;
	struct hf_core_nexus *core;
};

enum hf_store_kind {
	HF_STORE_NONE,
	HF_STORE_BLOCK,
	HF_STORE_FILE,
	HF_STORE_NULL,
};

#define HF_NEXUS_BITS 6
#define HF_NEXUSES_MAX 4096

struct hf_lu {
	struct se_device dev;
	struct kref ref;
	struct list_head all;
	uuid_t volume;
	bool has_volume;
	bool configured;

	enum hf_store_kind kind;
	char path[256];
	struct file *file;
	struct block_device *bdev;
	u64 size;

	/* Written by the channel under install_lock. */
	struct mutex install_lock;
	struct hf_image __rcu *image;
	u64 serial;
	/* Served here: this node owns the unit in the epoch of its image. */
	bool open;

	spinlock_t nexus_lock;
	DECLARE_HASHTABLE(nexuses, HF_NEXUS_BITS);
	unsigned int nexus_count;

	/* I/O in flight, of whatever image. */
	atomic_t in_flight;
	wait_queue_head_t idle;
};

static inline struct hf_lu *hf_lu_of(struct se_device *dev)
{
	return container_of(dev, struct hf_lu, dev);
}

/* hf_lu.c */
extern const struct target_backend_ops hf_ops;
struct hf_lu *hf_lu_find(const uuid_t *volume);
void hf_lu_get(struct hf_lu *lu);
void hf_lu_put(struct hf_lu *lu);
int hf_lu_install(struct hf_lu *lu, const u8 *message, size_t len);
int hf_lu_set_open(struct hf_lu *lu, bool open);
void hf_lu_close_all(void);
struct hf_image *hf_image_get(struct hf_lu *lu);
void hf_image_put(struct hf_image *image);
void hf_io_begin(struct hf_lu *lu);
void hf_io_end(struct hf_lu *lu);
bool hf_gate_is_open(const struct hf_lu *lu);
int hf_gate_set_lease(u64 until_boot_ns);
u64 hf_gate_lease(void);

/* hf_nexus.c */
struct hf_nexus *hf_nexus_of(struct hf_lu *lu, struct se_cmd *cmd);
u16 hf_nexus_relative_port(const struct hf_nexus *nexus);
u32 hf_nexus_relation(struct hf_nexus *nexus, const struct hf_image *image);
int hf_nexus_raise(struct hf_lu *lu, const struct hfk_attention *attention, const u8 *transport_id, size_t len);
void hf_nexus_free_all(struct hf_lu *lu);
int hf_port_set(const struct hfk_port *port);
void hf_ports_free(void);

/* hf_command.c */
sense_reason_t hf_parse_cdb(struct se_cmd *cmd);
void hf_complete(struct se_cmd *cmd, u8 status, const u8 *sense, u8 sense_len);
void hf_complete_data(struct se_cmd *cmd, const u8 *data, u32 len);
void hf_tmr_notify(struct se_device *dev, enum tcm_tmreq_table kind, struct list_head *aborted);
void hf_io_done(struct se_cmd *cmd, struct hf_image *image, bool write, int error);

/* hf_store.c */
int hf_store_open(struct hf_lu *lu);
void hf_store_close(struct hf_lu *lu);
void hf_store_rw(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image, u64 lba, u32 blocks, bool write,
		 bool durable);
void hf_store_flush(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image);
void hf_store_zeroes(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image, u64 lba, u32 blocks);
int hf_store_init(void);
void hf_store_exit(void);

/* hf_ask.c */
void hf_ask(struct hf_lu *lu, struct hf_nexus *nexus, struct se_cmd *cmd);
ssize_t hf_ask_read(char __user *to, size_t room, bool nonblock);
bool hf_ask_ready(void);
int hf_ask_answer(const struct hfk_verdict *verdict, u64 id, const u8 *data);
void hf_ask_daemon_gone(void);
void hf_ask_aborted(struct list_head *aborted);
void hf_ask_event_drained(const uuid_t *volume, u64 serial, u64 version);
void hf_ask_end_all(struct hf_lu *lu);
extern wait_queue_head_t hf_ask_wait;
void hf_ask_exit(void);

/* hf_channel.c */
int hf_channel_init(void);
void hf_channel_exit(void);

#endif
